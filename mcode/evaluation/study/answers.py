"""The file of answers: one comparison a line, read, and written so that no answer is lost or stands there twice."""

from __future__ import annotations

import codecs
import csv
import errno
import io
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from mcode.errors import InputError


@dataclass(frozen=True)
class Answer:
    """One comparison, a line of the file of answers. left: the method shown left. x, y, width, height: the crop, in pixels.
    looks: how often the rater looked at the original before answering. seconds: until the answer."""

    rater: str
    seed: int
    picture: str
    better: str
    worse: str
    left: str
    x: int
    y: int
    width: int
    height: int
    looks: int
    seconds: float


_COLUMNS = tuple(field.name for field in fields(Answer))
_KINDS = {"int": int, "float": float, "str": str}


def read_answers(path: str | os.PathLike[str]) -> list[Answer]:
    """A file of answers, in the order given. A last line cut off in writing is left out; InputError for any other fault."""
    return _read(path)[0]


def read_all(paths: Sequence[str | os.PathLike[str]]) -> list[Answer]:
    """Of several files. Raises InputError, as `read_answers`, where none holds an answer, and where one file holds what stands
    in another, word for word: it would count twice."""
    found: dict[Answer, str] = {}
    answers: list[Answer] = []
    for path in paths:
        here = read_answers(path)
        for each in here:
            if each in found:
                raise InputError(
                    f"{path}: {each.rater}'s answer about {each.picture}, {each.better} and {each.worse}, stands in "
                    f"{found[each]}, too; give each answer once"
                )
        found |= dict.fromkeys(here, os.fspath(path))
        answers += here
    if not answers:
        raise InputError(f"{', '.join(map(str, paths))}: no answers to score")
    return answers


def _read(path: str | os.PathLike[str]) -> tuple[list[Answer], bytes, int]:
    """The answers, what the file holds, and how many bytes of that are before a last line cut off."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""  # which spreadsheets write
    try:
        text = data[len(mark) :].decode()
    except UnicodeDecodeError as error:
        if set(data[len(mark) + error.start :]) & set(b"\r\n"):
            raise InputError(f"{path}: not a file of answers (not text)") from error
        text = data[len(mark) : len(mark) + error.start].decode()
    if not text:
        return [], data, 0
    source = io.StringIO(text, newline="")
    rows = csv.reader(source)
    try:
        if tuple(next(rows, ())) != _COLUMNS:
            raise InputError(f"{path}: not a file of answers; its first line should be {','.join(_COLUMNS)}")
        end = source.tell()
        lines = [(row, source.tell()) for row in rows if row]
    except csv.Error as error:
        raise InputError(f"{path}: line {rows.line_num} is no answer ({error})") from error
    answers = []
    for number, (row, row_end) in enumerate(lines, start=2):
        try:
            answers.append(_answer(row))
        except ValueError as error:
            if number == len(lines) + 1 and text[-1] not in "\r\n":
                return answers, data, len(mark) + len(text[:end].encode())
            raise InputError(f"{path}: line {number} is no answer ({error})") from error
        end = row_end
    return answers, data, len(mark) + len(text.encode())


def _answer(row: list[str]) -> Answer:
    if len(row) != len(_COLUMNS):
        raise ValueError(f"{len(row)} columns, not {len(_COLUMNS)}")
    answer = Answer(*(_KINDS[str(field.type)](cell) for field, cell in zip(fields(Answer), row, strict=True)))
    if answer.better == answer.worse or answer.left not in (answer.better, answer.worse):
        raise ValueError(f"{answer.better}, {answer.worse} and {answer.left} are no two methods")
    return answer


class AnswersFile:
    """A file of answers that one rater's are added to; those of others may stand in it, and may come meanwhile.

    earlier: the answers in it, in the order given. Raises InputError where it is none or cannot be written, before the first
    question, so that no rater answers in vain.
    """

    def __init__(self, path: Path, rater: str) -> None:
        self.path, self.rater = path, rater
        _check_appendable(path)
        self.earlier, data, self._whole_bytes = _read(path) if path.exists() else ([], b"", 0)
        self._is_cut_off = self._whole_bytes < len(data)
        self._lacks_end = data[: self._whole_bytes][-1:] not in (b"", b"\r", b"\n")
        self._seen_bytes = 0

    def begin(self) -> None:
        """Ends the file with a whole line, which a crash while writing may have left cut off. To be called before `append`."""
        if self._is_cut_off:
            os.truncate(self.path, self._whole_bytes)
        if self._lacks_end:
            self._write(b"\n")
        self._seen_bytes = self._file_bytes()

    def append(self, answer: Answer) -> None:
        """Written and synced, or not at all. Raises InputError where this rater's answers have come into the file from
        elsewhere: both would ask the same again."""
        self._check_alone()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.path.exists() or not self.path.stat().st_size:
            writer.writerow(_COLUMNS)
        writer.writerow(astuple(answer))
        self._write(text.getvalue().encode())
        self._seen_bytes = self._file_bytes()

    def _check_alone(self) -> None:
        """Other raters may write to the file meanwhile; two sessions of one would answer the same questions."""
        now_bytes = self._file_bytes()
        if now_bytes == self._seen_bytes:
            return
        if now_bytes < self._seen_bytes:
            raise InputError(f"{self.path} has lost answers since {self.rater} began; begin again")
        with open(self.path, "rb") as file:
            file.seek(self._seen_bytes)
            rows = csv.reader(io.StringIO(file.read().decode(errors="replace"), newline=""))
        if any(row[:1] == [self.rater] and tuple(row) != _COLUMNS for row in rows):
            raise InputError(f"another window is answering as {self.rater}; nothing is written from this one")

    def _file_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _write(self, data: bytes) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            end = os.fstat(file).st_size
            if os.write(file, data) != len(data):  # a disk that fills up: no half line stays
                os.ftruncate(file, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(file)
        finally:
            os.close(file)


def _check_appendable(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file, as answers.csv")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no folder {path.parent}; make it or choose another name")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path}: no permission to write there; choose another name")
