"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from mcode.config import from_dict
from mcode.errors import InputError
from mcode.nets.eye import Eye
from mcode.send.descriptions import _write as write_description
from mcode.training import classes, eye, loop
from mcode.training.compact import OptimiserConfig
from mcode.training.squares import Squares
from mcode.whole import partial_name, refuse_unwritable, whole, write_whole


def test_what_fails_leaves_the_file_before_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_whole(target, "before")
    with pytest.raises(RuntimeError), whole(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert target.read_text() == "before" and list(tmp_path.iterdir()) == [target]


def test_errors_name_the_file_and_not_what_is_written_beside_it(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    for path in (tmp_path / "page.html", tmp_path / "nowhere" / "page.html"):
        with pytest.raises(OSError) as error:
            write_whole(path, b"new")
        assert error.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as error, whole(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert error.value.filename == str(tmp_path / "other")


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


def test_where_no_file_can_be_made_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_unwritable(tmp_path / "new" / "folder" / "a.txt")
    write_whole(tmp_path / "file", b"")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt"):
        with pytest.raises(InputError, match=f"a.txt: {tmp_path}/file is a file, not a folder; choose another place"):
            refuse_unwritable(path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"{tmp_path}/gone is a link to nothing; choose another place"):
        refuse_unwritable(tmp_path / "gone" / "a.txt")
    (tmp_path / "gone").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    for path in (tmp_path / "a.txt", tmp_path / "new" / "a.txt"):
        with pytest.raises(InputError, match=f"a.txt: not allowed to write into {tmp_path}; choose another place"):
            refuse_unwritable(path)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_description_goes_down_a_pipe() -> None:
    end, begin = os.pipe()
    write_description(Path(f"/dev/fd/{begin}"), "v=0")
    os.close(begin)
    with open(end, "rb") as file:
        assert file.read() == b"v=0"


def save_checkpoint(path: Path) -> None:
    loop.save_checkpoint(path, torch.nn.Linear(1, 1), {}, [], 1, from_dict({"steps": 1}, OptimiserConfig, source="test"))


def save_eye(path: Path) -> None:
    eye.save([(Eye(), 1.0)], path, card={})


def save_classes(path: Path) -> None:
    squares = Squares(np.zeros((2, 8, 8, 1), np.uint8), (1, 1), ("a", "b"))
    classes.learn(squares, 1, path, seed=1, device=torch.device("cpu"), epochs=0)


@pytest.mark.parametrize("save", [save_checkpoint, save_eye, save_classes])
def test_tensors_are_as_readable_as_other_files_and_a_full_disk_is_an_os_error(tmp_path: Path, monkeypatch, save) -> None:
    path = tmp_path / "a.safetensors"
    before = os.umask(0o027)
    try:
        save(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.unlink()

    def full(tensors, part, metadata=None):
        Path(part).write_bytes(b"half")
        raise SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")

    for module in (loop, eye, classes):
        monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        save(path)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, os.fspath(path)) and not list(tmp_path.iterdir())


def test_a_training_goes_on_without_the_board_that_cannot_be_written(tmp_path: Path) -> None:
    class Full:
        def add_scalar(self, *_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        add_image = add_scalar

    log = loop.Log(tmp_path, 0, 0, None)
    for show in (lambda step: log.write(step, loss=1.0), lambda step: log.picture(step, np.zeros((2, 2, 3), np.uint8))):
        log._board = Full()
        show(1)
        show(2)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
