"""The package's public names: all of them there, typed, and imported only when used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mcode

WANTED = {
    *("Decoder", "Encoder", "Frame", "Manifold", "McodeReader", "McodeWriter", "Model", "Packet", "StreamHeader"),
    *("FormatError", "InputError", "ManifoldError", "McodeError", "WireError", "TICKS_PER_S"),
    *("DecodeReport", "EncodeReport", "decode_file", "encode_file", "load"),
}

WRONG = """
import mcode

def pack(manifold: mcode.Manifold, frame: mcode.Frame) -> list[mcode.Packet]:
    encoder = mcode.Encoder(manifold, 128, 128, nonsense=3)
    mcode.load("general", devise="cpu")
    mcode.no_such_name
    return encoder.push(frame)
"""

RIGHT = """
import numpy as np
import mcode
from torch import Tensor
from mcode.coders import CodeTables

class Mine:
    id = "00112233445566aa"
    default_quality = 1
    hyper = None
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]: ...
    def analyse(self, rgb: np.ndarray) -> Tensor: ...
    def synthesise(self, latents: Tensor, width: int, height: int) -> np.ndarray: ...
    def gain(self, quality: int) -> Tensor: ...
    def inverse(self, quality: int) -> Tensor: ...
    def zero_margin(self, quality: int) -> None: ...
    def tables(self, quality: int) -> CodeTables: ...

mcode.Encoder(Mine(), 64, 64)
mcode.Decoder(Mine())
"""


@pytest.mark.parametrize("name", sorted(WANTED))
def test_what_a_program_needs_is_public(name):
    assert name in dir(mcode) and getattr(mcode, name) is not None


def test_checkers_see_every_public_name_where_it_is():
    tree = ast.parse(Path(mcode.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert seen == mcode._PUBLIC and set(seen) == WANTED


def test_importing_the_package_imports_nothing_else():
    program = "import sys, mcode; print([n for n in sys.modules if n.split('.')[0] in ('mcode', 'torch', 'numpy', 'av')])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "['mcode']", result.stderr


@pytest.mark.slow
def test_checkers_find_wrong_calls_and_take_any_class_of_the_right_form_for_a_model(tmp_path):
    pytest.importorskip("mypy", reason="in the extra dev")
    (tmp_path / "program.py").write_text(WRONG)
    (tmp_path / "model.py").write_text(RIGHT)
    root = Path(mcode.__file__).parents[1]
    options = ("--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path}")
    command = [sys.executable, "-m", "mypy", *options, "--disable-error-code=empty-body", "--disable-error-code=type-arg"]
    files = [str(tmp_path / name) for name in ("program.py", "model.py")]
    result = subprocess.run([*command, *files], cwd=root, capture_output=True, text=True)
    errors = [line for line in result.stdout.splitlines() if ".py:" in line and "error: " in line]
    wrong = ("nonsense", "devise", "no_such_name")
    assert len(errors) == len(wrong), result.stdout + result.stderr
    assert all(name in line for name, line in zip(wrong, errors, strict=True)), result.stdout
