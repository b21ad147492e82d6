"""Imports run downwards only (rooms and floors): read in the source, and seen in sys.modules after an import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mcode

PACKAGE = Path(mcode.__path__[0])

FLOORS = {
    "errors": 0,
    "frame": 0,
    "config": 0,
    "memory": 0,
    "whole": 0,
    "text": 0,
    "packet": 1,
    "channel": 1,
    "coders": 1,
    "conceal": 1,
    "latents": 1,
    "nets": 1,
    "header": 2,
    "manifold": 2,
    "codec": 2,
    "baseline": 2,
    "video": 2,
    "container": 2,
    "rtp": 2,
    "fec": 2,
    "addresses": 2,
    "lanes": 2,
    "send": 2,
    "receive": 2,
    "testclip": 2,
    "transcode": 2,
    "jobs": 2,
    "fetch": 2,
    "importing": 3,
    "refine": 3,
    "batch": 3,
    "training": 3,
    "evaluation": 3,
    "cli": 4,
    "__main__": 4,
}
"""The floor of each room; a module stands on the floor of its room. The package itself imports lazily: floor 0."""

HEAVY = {"torch", "av", "cv2", "PyQt6", "pyqtgraph", "matplotlib", "scipy", "rich"}
MAY_USE_TORCH = {"latents", "nets"}
SANS_IO = {"packet", "channel", "coders", "latents", "nets", "codec"}


def room(module: str) -> str:
    """The room a dotted module name stands in: mcode.nets.hific -> nets; the package itself -> "" ."""
    return [*module.split("."), ""][1]


def floor(module: str) -> int:
    return FLOORS.get(room(module), 4) if room(module) else 0


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
LOW = [name for name in MODULES if floor(name) <= 1]


def imports(path: Path, module: str) -> Iterator[str]:
    """Every module named by an import statement in the file, inside functions too, but not those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_checkers = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_checkers:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*base, source] if source else base)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in MODULES)


def loaded_after(*modules: str) -> dict[str, list[str]]:
    """Import each module afresh in one new interpreter; the names then in sys.modules, by module imported."""
    program = f"""
import importlib, json, sys
loaded = {{}}
for name in {modules!r}:
    for known in [known for known in sys.modules if known.split(".")[0] == "mcode"]:
        del sys.modules[known]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name.split(".")[0] == "mcode":
            raise
        continue  # an optional extra that is not installed
    loaded[name] = sorted(sys.modules)
print(json.dumps(loaded))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_every_module_stands_on_a_floor():
    homeless = [name for name in MODULES if room(name) not in {*FLOORS, ""}]
    assert not homeless, f"give {homeless} a floor in {Path(__file__).name}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards_only(module):
    if module == "mcode":
        pytest.skip("the package only forwards names, lazily: tested by what importing it loads")
    upwards = [
        name for name in imports(MODULES[module], module) if name.split(".")[0] == "mcode" and floor(name) > floor(module)
    ]
    assert not upwards, f"{module} (floor {floor(module)}) imports {upwards}"


def test_the_low_floors_load_nothing_heavy():
    modules = [name for name in LOW if room(name) not in MAY_USE_TORCH]
    for module, loaded in loaded_after(*modules).items():  # the first module named in a failure is the one to blame
        heavy = {name.split(".")[0] for name in loaded} & HEAVY
        assert not heavy, f"import {module} loads {heavy}"


@pytest.mark.parametrize("module", [name for name in LOW if room(name) in MAY_USE_TORCH])
def test_latents_and_networks_know_torch_but_neither_video_nor_windows(module):
    names = {name.split(".")[0] for name in imports(MODULES[module], module)}
    assert not names & (HEAVY - {"torch"})


def test_importing_a_module_loads_no_module_of_a_higher_floor():
    modules = [name for name in MODULES if room(name) != "__main__"]
    for module, loaded in loaded_after(*modules).items():
        upwards = [name for name in loaded if name.split(".")[0] == "mcode" and floor(name) > floor(module)]
        assert not upwards, f"import {module} (floor {floor(module)}) loads {upwards}"


def test_the_command_line_loads_nothing_heavy_before_it_is_told_what_to_do():
    loaded = {name.split(".")[0] for name in loaded_after("mcode.cli")["mcode.cli"]}
    assert not loaded & (HEAVY | {"numpy"})


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in SANS_IO])
def test_the_codec_core_opens_nothing_asks_no_clock_and_prints_nothing(module):
    forbidden = {"socket", "time", "logging", "subprocess", "datetime", "random"}
    assert not set(imports(MODULES[module], module)) & forbidden
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print", "input"}


def test_relative_and_hidden_imports_are_seen(tmp_path):
    source = tmp_path / "packet.py"
    source.write_text("from . import codec\ndef f():\n    from mcode.cli import app\n    import av.container\n")
    seen = set(imports(source, "mcode.packet"))
    assert {"mcode", "mcode.cli", "av.container"} <= seen
    assert ("mcode.codec" in seen) == ("mcode.codec" in MODULES)
