"""The docs say what the program does: every command stands in the README, the byte layout is the code's, files exist."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

import pytest
import typer.main

from mcode import fec, packet
from mcode.cli import app
from mcode.rtp import payload
from mcode.video import FrameReader, probe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name))


@pytest.mark.parametrize("command", sorted(commands(typer.main.get_command(app))))
def test_every_command_stands_in_the_readme(command):
    first, *rest = command.split()
    line = next((x for x in README.splitlines() if f"mcode {first}" in x and all(part in x for part in rest)), None)
    assert line, f"mcode {command} is not in README.md"


def test_the_first_two_commands_are_the_demo_and_the_tests():
    found = re.findall(r"^    (scripts/\S+|mcode \w+)", README, re.M)
    assert found[:2] == ["scripts/demo.sh", "scripts/test.sh"]


@pytest.mark.parametrize(
    "table", [packet.LAYOUT, payload.WIRE, payload.BUNDLE, fec.LAYOUT], ids=["sample", "payload", "bundle", "parity"]
)
def test_the_layout_in_the_docs_is_the_codes(table):
    assert table in (ROOT / "docs" / "format.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "document", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
)
def test_links_and_pictures_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{document} points to {target}"


def test_options_in_the_readme_exist():
    from typer.testing import CliRunner

    helps = {}
    for command in commands(typer.main.get_command(app)):
        helps[command.split()[0]] = (
            helps.get(command.split()[0], "") + CliRunner().invoke(app, [*command.split(), "--help"]).output
        )
    for line in re.findall(r"^ +mcode (\w+ .*)$", README, re.M):
        words = line.split("#")[0].split()
        for option in (word for word in words if word.startswith("--")):
            assert option in helps[words[0]], f"mcode {words[0]} has no {option}"


def test_the_programs_in_the_readme_run(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, "clip.mp4")
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    lines = README.partition("In Python:\n")[2].partition("\n## ")[0]
    lines += guide.partition("s of 640x360:\n")[2].partition("\nErrors")[0]
    shown, frames = [], list(FrameReader(clip, duration_s=0.4))
    names = {"frames": frames, "show": shown.append}
    exec(textwrap.dedent(lines).replace("width=640, height=360", "width=96, height=64"), names)
    assert len(shown) == 9 and [p.pts for p in names["packets"]] == [frames[-1].pts]
    assert names["picture"].pts == 0 and [f.pts for f in names["pictures"]] == [f.pts for f in frames]
    assert names["report"].frames == 50 and probe("back.mp4").audio_codec


def test_no_page_has_a_place_holder_left():
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        assert not re.search(r"@[A-Z_]+@|TODO|FIXME", path.read_text(encoding="utf-8")), path
