"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcode.send import _write_description
from mcode.whole import partial_name, whole, write_whole


def test_what_fails_leaves_the_file_before_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_whole(target, "before")
    with pytest.raises(RuntimeError), whole(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert target.read_text() == "before" and list(tmp_path.iterdir()) == [target]


def test_what_takes_a_files_place_keeps_its_permissions(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_whole(target, b"1")
    target.chmod(0o600)
    write_whole(target, "2 \N{GREEK SMALL LETTER BETA}")
    assert target.read_bytes() == b"2 \xce\xb2" and target.stat().st_mode & 0o777 == 0o600


def test_names_as_long_as_a_file_system_takes_have_a_name_beside_them(tmp_path: Path) -> None:
    names = ["\N{GREEK SMALL LETTER BETA}" * 127 + end for end in "ab"]
    assert len({partial_name(name) for name in names}) == 2
    for name in names:
        write_whole(tmp_path / name, name)
    assert {path.read_text() for path in tmp_path.iterdir()} == set(names)


def test_a_description_goes_down_a_pipe() -> None:
    end, begin = os.pipe()
    _write_description(Path(f"/dev/fd/{begin}"), "v=0")
    os.close(begin)
    with open(end, "rb") as file:
        assert file.read() == b"v=0"
