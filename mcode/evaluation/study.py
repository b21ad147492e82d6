"""A user study by two-alternative forced choice: its folder of pictures, a rater's way through it, the Elo scores.

After Mentzer, Toderici, Tschannen, Agustsson 2020 (HiFiC), section 3.4. No window here: `player.study` shows what `Session`
asks and tells it the answers.
"""

from __future__ import annotations

import codecs
import csv
import errno
import io
import json
import math
import os
import re
import shutil
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mcode.errors import InputError
from mcode.text import is_text
from mcode.video import read_picture
from mcode.whole import partial_name, whole

if TYPE_CHECKING:
    from mcode.evaluation.stills import StillCodec
    from mcode.manifold import Manifold
    from mcode.refine import Refiner

ORIGINAL = "original"
"""The name of the folder with the uncoded pictures."""
NOTE = "study.json"
"""What `prepare` notes beside the folders: each method's codec, manifolds, setting and bits per pixel."""
CROP = 768
"""Pixels of the crop's side at most, as in the paper: two of them stand side by side on a screen without scaling."""
K, SPREAD, START = 30.0, 400.0, 1500.0
"""Elo's step and scale as in the paper, and the score at which every method starts."""
SHUFFLES = 10_000
MOST_GAMES = 300_000_000
"""Answers times shuffles at most (about half a minute); beyond that there are fewer shuffles, and the report says so."""
MOST_METHODS = 500
"""Scores need memory for the square of their number."""
FLOOR_SHARE = 0.05
"""By how much the bits of two methods may differ and still be called equal."""


@dataclass(frozen=True)
class Material:
    """The pictures of a study. methods: without the original. sizes: (width, height) of each picture by its name."""

    folder: Path
    methods: tuple[str, ...]
    pictures: tuple[str, ...]
    sizes: dict[str, tuple[int, int]]
    files: dict[tuple[str, str], Path]

    def read(self, method: str, picture: str) -> np.ndarray:
        """uint8 (H, W, 3), as `video.read_picture` shows it; InputError where the file has changed since and is none now, or
        one of another size."""
        rgb = read_picture(self.files[method, picture])
        _check_size(self.files[method, picture], rgb, self.sizes[picture])
        return rgb


def open_material(folder: str | os.PathLike[str], *, progress: Callable[[int, int | None], None] | None = None) -> Material:
    """DIR/METHOD/PICTURE.*, one METHOD being `original`. Raises InputError where methods or pictures do not match.

    Every picture is read once, so that a damaged one is named before a rater begins. progress(pictures read, of how many).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; `mcode study prepare` makes one")
    places = [place for place in sorted(folder.iterdir()) if place.is_dir() and place.name[:1] != "."]
    found = {_name(place): _pictures_in(place) for place in places}
    if ORIGINAL not in found:
        raise InputError(f"{folder}: no folder named {ORIGINAL} in it; one folder for each method, and that one, are needed")
    originals = found.pop(ORIGINAL)
    if len(found) < 2:
        raise InputError(f"{folder}: {len(found)} method{'' if len(found) == 1 else 's'} beside {ORIGINAL}; two at least")
    if not originals:
        raise InputError(f"{folder / ORIGINAL}: no pictures in it")
    files = {(ORIGINAL, name): path for name, path in originals.items()}
    for method, pictures in found.items():
        if pictures.keys() != originals.keys():
            name = min(pictures.keys() ^ originals.keys())
            lacking, other = (ORIGINAL, method) if name in pictures else (method, ORIGINAL)
            raise InputError(f"{folder / lacking}: no picture named {name}, which {other} has; all methods need the same ones")
        files |= {(method, name): path for name, path in pictures.items()}
    sizes: dict[str, tuple[int, int]] = {}
    for done, ((_, name), path) in enumerate(files.items(), start=1):
        rgb = read_picture(path)
        _check_size(path, rgb, sizes.setdefault(name, (rgb.shape[1], rgb.shape[0])))
        if progress:
            progress(done, len(files))
    return Material(folder, tuple(found), tuple(originals), sizes, files)


def _check_size(path: Path, rgb: np.ndarray, wanted: tuple[int, int]) -> None:
    height, width, _ = rgb.shape
    if (width, height) != wanted:
        raise InputError(f"{path}: {width}x{height}, but the original is {wanted[0]}x{wanted[1]}")


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
    """Of several files. Raises InputError, as `read_answers`, and where one file holds what stands in another, word for word:
    it would count twice."""
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


class Ranking:
    """Methods sorted by comparisons, each put in its place by binary search (binary insertion; the paper's choice of pairs).

    ranked: those placed so far, the best first. Nine methods take 18.8 answers on average and 21 at most, all pairs 36.
    """

    def __init__(self, order: Sequence[str]) -> None:
        self.ranked, self._waiting = [order[0]], list(order[1:])
        self._low, self._high = 0, 1

    @property
    def pair(self) -> tuple[str, str] | None:
        """What to compare next; None when all are in their places."""
        return (self._waiting[0], self.ranked[(self._low + self._high) // 2]) if self._waiting else None

    @property
    def most_left(self) -> int:
        """Answers that are still needed at most."""
        if not self._waiting:
            return 0
        placed = len(self.ranked)
        return (self._high - self._low).bit_length() + sum((placed + i).bit_length() for i in range(1, len(self._waiting)))

    def answer(self, better: str) -> None:
        """better: one of `pair`."""
        assert self.pair is not None and better in self.pair
        middle = (self._low + self._high) // 2
        if better == self._waiting[0]:
            self._high = middle
        else:
            self._low = middle + 1
        if self._low == self._high:
            self.ranked.insert(self._low, self._waiting.pop(0))
            self._low, self._high = 0, len(self.ranked)


@dataclass(frozen=True)
class Question:
    """Which of left and right is closer to the original, within the crop (x, y, width, height) of a picture?"""

    picture: str
    left: str
    right: str
    crop: tuple[int, int, int, int]


class Session:
    """One rater's way through a study: what to ask next, and every answer into the file at once.

    The seed and the rater's name decide the order of pictures and methods, the sides and the crops, so that a session goes on
    where it stopped. Answers of other raters may stand in the same file. crop: the side of a crop at most. Raises InputError.
    """

    def __init__(
        self, material: Material, output: str | os.PathLike[str], rater: str, *, seed: int = 0, crop: int = CROP
    ) -> None:
        if not rater.strip() or any(ord(letter) < 32 for letter in rater):
            raise InputError(f"--rater {rater!r}: give a name of at least one letter, on one line")
        if not is_text(rater):
            raise InputError(f"--rater {rater!r}: give a name in UTF-8")
        self.material, self.output, self.rater, self.seed = material, Path(output), rater.strip(), seed
        _check_appendable(self.output)
        self._side = crop
        self._rankings = {name: Ranking(self._shuffled(material.methods, name)) for name in material.pictures}
        self._order = self._shuffled(material.pictures, "")
        self._crops: dict[str, tuple[int, int, int, int]] = {}
        self._drawn: dict[str, int] = {}
        self.answered = 0
        earlier, data, whole_bytes = _read(self.output) if self.output.exists() else ([], b"", 0)
        for number, answer in enumerate(earlier, start=2):
            if answer.rater == self.rater:
                self._replay(answer, number)
        self._mend(data, whole_bytes)
        self._seen_bytes = self._file_bytes()

    @property
    def most_left(self) -> int:
        """Answers that are still needed at most, over all pictures."""
        return sum(ranking.most_left for ranking in self._rankings.values())

    @property
    def question(self) -> Question | None:
        """What to ask next; None at the end."""
        for name in self._order:
            if pair := self._rankings[name].pair:
                left, right = pair if self._random("side", name, self.answered).random() < 0.5 else pair[::-1]
                return Question(name, left, right, self._crop(name))
        return None

    @property
    def may_recrop(self) -> bool:
        """Whether the rater may still ask for another crop: only before the first answer to a picture (section 3.4)."""
        question = self.question
        return question is not None and question.picture not in self._crops

    def recrop(self) -> None:
        """Another random crop of the picture asked about, where `may_recrop`."""
        if self.may_recrop and (question := self.question):
            self._drawn[question.picture] = self._drawn.get(question.picture, 0) + 1

    def answer(self, *, left: bool, looks: int = 0, seconds: float = 0.0) -> None:
        """The left one is closer to the original, or the right one. Written and synced before it counts.

        Raises InputError where this rater's answers have come into the file from elsewhere: both would ask the same again.
        """
        question = self.question
        assert question is not None
        better, worse = (question.left, question.right) if left else (question.right, question.left)
        answer = Answer(
            self.rater, self.seed, question.picture, better, worse, question.left, *question.crop, looks, round(seconds, 2)
        )
        self._check_alone()
        self._append(answer)
        self._seen_bytes = self._file_bytes()
        self._count(answer)

    def _count(self, answer: Answer) -> None:
        self._rankings[answer.picture].answer(answer.better)
        self._crops[answer.picture] = (answer.x, answer.y, answer.width, answer.height)
        self.answered += 1

    def _replay(self, answer: Answer, line: int) -> None:
        ranking = self._rankings.get(answer.picture)
        if answer.seed != self.seed:
            raise InputError(
                f"--seed {self.seed}: {self.rater} began {self.output} with --seed {answer.seed}; use that, or another output"
            )
        if ranking is None or ranking.pair is None or {answer.better, answer.worse} != set(ranking.pair):
            raise InputError(
                f"{self.output}: line {line} ({answer.picture}, {answer.better} and {answer.worse}) belongs to another study "
                f"than {self.material.folder}; choose another output, or another --rater"
            )
        width, height = self.material.sizes[answer.picture]
        x, y, right, bottom = answer.x, answer.y, answer.x + answer.width, answer.y + answer.height
        if not (0 <= x < right <= width and 0 <= y < bottom <= height):
            raise InputError(
                f"{self.output}: line {line} (a crop of {answer.picture} that ends at {right}, {bottom}) belongs to another "
                f"study than {self.material.folder}, where it has {width}x{height}; choose another output, or another --rater"
            )
        self._count(answer)

    def _check_alone(self) -> None:
        """Other raters may write to the file meanwhile; two sessions of one would answer the same questions."""
        now_bytes = self._file_bytes()
        if now_bytes == self._seen_bytes:
            return
        if now_bytes < self._seen_bytes:
            raise InputError(f"{self.output} has lost answers since {self.rater} began; begin again")
        with open(self.output, "rb") as file:
            file.seek(self._seen_bytes)
            rows = csv.reader(io.StringIO(file.read().decode(errors="replace"), newline=""))
        if any(row[:1] == [self.rater] and tuple(row) != _COLUMNS for row in rows):
            raise InputError(f"another window is answering as {self.rater}; nothing is written from this one")

    def _file_bytes(self) -> int:
        return self.output.stat().st_size if self.output.exists() else 0

    def _crop(self, picture: str) -> tuple[int, int, int, int]:
        if picture in self._crops:
            return self._crops[picture]
        width, height = self.material.sizes[picture]
        w, h = min(self._side, width), min(self._side, height)
        rng = self._random("crop", picture, self._drawn.get(picture, 0))
        return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h

    def _shuffled(self, names: Sequence[str], purpose: str) -> list[str]:
        return [names[i] for i in self._random("order", purpose).permutation(len(names))]

    def _random(self, *purpose: object) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(repr((self.rater, *purpose)).encode())])

    def _mend(self, data: bytes, whole_bytes: int) -> None:
        """Ends the file with a whole line, which a crash while writing may have left cut off. data, whole_bytes: as read."""
        if whole_bytes < len(data):
            os.truncate(self.output, whole_bytes)
        if data[:whole_bytes][-1:] not in (b"", b"\r", b"\n"):
            self._write(b"\n")

    def _append(self, answer: Answer) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.output.exists() or not self.output.stat().st_size:
            writer.writerow(_COLUMNS)
        writer.writerow(astuple(answer))
        self._write(text.getvalue().encode())

    def _write(self, data: bytes) -> None:
        file = os.open(self.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            end = os.fstat(file).st_size
            if os.write(file, data) != len(data):  # a disk that fills up: no half line stays
                os.ftruncate(file, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.output))
            os.fsync(file)
        finally:
            os.close(file)


def _check_appendable(path: Path) -> None:
    """Before the first question, so that no rater answers in vain."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file, as answers.csv")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no folder {path.parent}; make it or choose another name")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path}: no permission to write there; choose another name")


@dataclass(frozen=True)
class MethodScore:
    """elo, low, high: median and 95 % interval over the shuffled orders of the answers, as in the paper. strength,
    strength_low, strength_high: the Bradley-Terry model's, on Elo's scale, with the interval that the answers allow for other
    pictures and raters of the kind, where there are several of each and they gave about as many answers (see `bradley_terry`):
    the shuffles' tells only what the order does, and few answers leave Elo near START. wins of games."""

    method: str
    elo: float
    low: float
    high: float
    strength: float
    strength_low: float
    strength_high: float
    wins: int
    games: int


@dataclass(frozen=True)
class StudyScore:
    """The best method first, over all answers, and for each rater and each picture by name. shuffles: orders tried for each."""

    answers: int
    pictures: int
    shuffles: int
    methods: tuple[MethodScore, ...]
    raters: dict[str, tuple[MethodScore, ...]]
    by_picture: dict[str, tuple[MethodScore, ...]]


def score(answers: Sequence[Answer], *, shuffles: int = SHUFFLES, seed: int = 0) -> StudyScore:
    """Scores of all methods that were compared; of all answers, by rater and by picture (HiFiC's appendix A.5).

    InputError where there are no answers.
    """
    if not answers:
        raise InputError("no answers to score")
    if (methods := len({name for answer in answers for name in (answer.better, answer.worse)})) > MOST_METHODS:
        raise InputError(f"{methods:,} methods, and a study has at most {MOST_METHODS}; score fewer of the files at once")
    shuffles = max(1, min(shuffles, MOST_GAMES // (3 * len(answers))))
    by_rater: dict[str, list[Answer]] = {}
    by_picture: dict[str, list[Answer]] = {}
    for answer in answers:
        by_rater.setdefault(answer.rater, []).append(answer)
        by_picture.setdefault(answer.picture, []).append(answer)
    rng = np.random.default_rng(seed)
    return StudyScore(
        answers=len(answers),
        pictures=len({answer.picture for answer in answers}),
        shuffles=shuffles,
        methods=_scores(answers, shuffles, rng),
        raters={rater: _scores(given, shuffles, rng) for rater, given in sorted(by_rater.items())},
        by_picture={picture: _scores(given, shuffles, rng) for picture, given in sorted(by_picture.items())},
    )


def _scores(answers: Sequence[Answer], shuffles: int, rng: np.random.Generator) -> tuple[MethodScore, ...]:
    names = sorted({name for answer in answers for name in (answer.better, answer.worse)})
    index = {name: i for i, name in enumerate(names)}
    games = np.array([(index[answer.better], index[answer.worse]) for answer in answers])
    low, median, high = np.percentile(elo(games, len(names), shuffles=shuffles, rng=rng), (2.5, 50, 97.5), axis=0)
    parts = [np.unique(of, return_inverse=True)[1] for of in ([a.picture for a in answers], [a.rater for a in answers])]
    strength, half = bradley_terry(games, len(names), parts)
    wins = np.bincount(games[:, 0], minlength=len(names))
    played = np.bincount(games.ravel(), minlength=len(names))
    scores = [
        MethodScore(
            method=name,
            elo=float(median[i]),
            low=float(low[i]),
            high=float(high[i]),
            strength=float(strength[i]),
            strength_low=float(strength[i] - half[i]),
            strength_high=float(strength[i] + half[i]),
            wins=int(wins[i]),
            games=int(played[i]),
        )
        for name, i in index.items()
    ]
    return tuple(sorted(scores, key=lambda each: -each.elo))


def elo(games: np.ndarray, methods: int, *, shuffles: int, rng: np.random.Generator) -> np.ndarray:
    """Elo scores (shuffles, methods) after all games, each time in another random order (section 3.4; Elo 1978).

    games: int (n, 2), winner and loser. The winner gains K times the loser's expected share, and the loser loses as much.
    """
    scores = np.full((shuffles, methods), START)
    count = len(games)
    part = max(1, min(2500, 10_000_000 // max(1, count)))  # bounds the memory, and stays in the processor's caches
    for first in range(0, shuffles, part):
        block = scores[first : first + part]
        flat, rows = block.reshape(-1), np.arange(len(block)) * methods
        order = np.ascontiguousarray(rng.permuted(np.tile(np.arange(count, dtype=np.int32), (len(block), 1)), axis=1).T)
        for step in order:
            winner, loser = rows + games[step, 0], rows + games[step, 1]
            a, b = flat[winner], flat[loser]
            gain = K / (1 + np.exp((a - b) * (math.log(10) / SPREAD)))
            flat[winner], flat[loser] = a + gain, b - gain
    return scores


def bradley_terry(games: np.ndarray, methods: int, parts: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Strengths on Elo's scale and half of their 95 % intervals, both (methods,), the mean at START (Bradley, Terry 1952).

    The most probable strengths under the same logistic law as Elo's and a normal prior of 3 logits (521 points), which keeps
    a method that always wins finite. By Newton's method. games: int (n, 2), winner and loser. parts: of each game its picture,
    its rater, int (n,), from 0. Answers about one picture are alike, and so are those of one rater: with parts the interval is
    that of other ones of the kind, by a covariance clustered by each (Cameron, Gelbach, Miller 2011), and never narrower than
    that of answers which have nothing in common. Where there is one part alone, or one with most of the answers,
    nothing can tell how others differ from it.
    """
    prior, theta = 1 / 9, np.zeros(methods)
    winner, loser = games.T
    for _ in range(50):
        share = 1 / (1 + np.exp(theta[winner] - theta[loser]))
        gradient = np.bincount(winner, share, methods) - np.bincount(loser, share, methods) - prior * theta
        weight = share * (1 - share)
        hessian = np.diag(np.bincount(winner, weight, methods) + np.bincount(loser, weight, methods) + prior)
        np.subtract.at(hessian, (winner, loser), weight)
        np.subtract.at(hessian, (loser, winner), weight)
        step = np.linalg.solve(hessian, gradient)
        theta += step
        if np.abs(step).max() < 1e-9:
            break
    centre = np.eye(methods) - 1 / methods
    inverse = np.linalg.inv(hessian) @ centre
    alone = 1.96**2 * np.diag(centre @ inverse)
    clustered = [_clustered(games, share, part, inverse) for part in parts if part.max() > 0]
    # What each alone would give is in both.
    squared = np.maximum(alone, np.sum(clustered, axis=0) - alone * (len(clustered) - 1)) if clustered else alone
    scale = SPREAD / math.log(10)
    return START + scale * (theta - theta.mean()), scale * np.sqrt(squared)


def _clustered(games: np.ndarray, share: np.ndarray, part: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """The squares (methods,) of half the 95 % interval by how much the parts pull apart. share: the gradient of each game."""
    count = int(part.max()) + 1
    pull = np.zeros((count, len(inverse)))
    np.add.at(pull, (part, games[:, 0]), share)
    np.subtract.at(pull, (part, games[:, 1]), share)
    moved = (pull - pull.mean(0)) @ inverse
    return np.asarray(_student(count - 1) ** 2 * count / (count - 1) * np.square(moved).sum(0))


def _student(freedom: int) -> float:
    """Within how many deviations Student's t of so many degrees of freedom stays 95 % of the time: sqrt(freedom) tan(angle) of
    an angle with a density of cos^(freedom - 1)."""
    angle = np.linspace(0, math.pi / 2, 100_001)
    area = np.cumsum(np.cos(angle) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(np.interp(0.95 * area[-1], area, angle))


def check_plot(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """InputError where `plot` could not write there; called before the scores are computed."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"{path}: a plot is written as .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no folder {path.parent}; make it or choose another name")
    if path.exists() and not force:
        raise InputError(f"{path}: exists; add --force to replace it or choose another name")


def plot(result: StudyScore, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """The scores as a picture: all raters with their interval, each rater as a small point beside it."""
    path = Path(path)
    check_plot(path, force=force)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.7 + 0.48 * len(result.methods)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rows = {each.method: row for row, each in enumerate(reversed(result.methods))}
    single = [(each.elo, rows[each.method]) for scores in result.raters.values() for each in scores]
    axes.plot([x for x, _ in single], [y - 0.2 for _, y in single], "|", color="#8c96a6", markersize=7, label="one rater")
    for each in result.methods:
        axes.plot([each.low, each.high], [rows[each.method]] * 2, "-", color="#0b8f75", linewidth=2.2, alpha=0.55)
    axes.plot(
        [each.elo for each in result.methods],
        [rows[each.method] for each in result.methods],
        "o",
        color="#0b8f75",
        label="all raters: median and 95 % over orders of the answers",
    )
    axes.errorbar(
        [each.strength for each in result.methods],
        [rows[each.method] + 0.22 for each in result.methods],
        xerr=[(each.strength_high - each.strength_low) / 2 for each in result.methods],
        fmt="D",
        color="#d08a1d",
        markersize=4,
        elinewidth=1.2,
        label="all raters: Bradley-Terry and its 95 %",
    )
    axes.set_yticks(list(rows.values()), list(rows), parse_math=False)
    axes.set_ylim(-0.7, len(rows) - 0.4)
    axes.set_xlabel("Elo score (more is closer to the original)")
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower left", ncols=3)
    raters = len(result.raters)
    title = f"{result.answers:,} answers of {raters} rater{'s' * (raters > 1)} on {result.pictures} pictures"
    axes.set_title(title, loc="left", fontsize=11)
    with whole(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=130)


@dataclass(frozen=True)
class Method:
    """A codec to prepare: at a `setting`, or at a rate: `bpp` bits per pixel, or `times` those of the method `of` on each
    picture. manifold: the name of MCode's, the first one if None; several, joined by +, are tried for a rate. refined: where
    refinement is asked for."""

    name: str
    codec: str
    setting: int | None = None
    bpp: float | None = None
    times: float | None = None
    of: str | None = None
    manifold: str | None = None
    refined: bool = True


@dataclass(frozen=True)
class PreparedMethod:
    """bpp, psnr_db: means over the pictures. reached: of how many pictures the wanted rate could be reached; at_floor: of how
    many the cheapest setting has more than that, by over FLOOR_SHARE. manifolds: ids by name. coder, refine (steps), refine_by:
    MCode's; None, 0 and None where there is none."""

    method: str
    codec: str
    setting: str
    bpp: float
    psnr_db: float
    reached: int
    at_floor: int
    manifolds: dict[str, str]
    coder: str | None
    refine: int
    refine_by: str | None


@dataclass(frozen=True)
class Prepared:
    folder: str
    pictures: int
    methods: tuple[PreparedMethod, ...]


SETTINGS: dict[str, tuple[int, ...]] = {
    "jpeg": tuple(range(1, 96)),
    "webp": tuple(range(101)),
    "jpeg2000": tuple(sorted({round(400 / 1.02**i) for i in range(268)} | set(range(2, 25)), reverse=True)),
    "h264": tuple(range(51, -1, -1)),
    "h265": tuple(range(51, -1, -1)),
    "av1": tuple(range(63, 0, -1)),
}
"""Each codec's settings, the fewest bits first: JPEG's and WebP's quality, JPEG 2000's ratio, the others' CRF (intra)."""
_METHOD = re.compile(
    r"(?P<codec>[a-z0-9]+)(?P<unrefined>-unrefined)?(?:/(?P<manifold>.+?))?"
    r"(?::q?(?P<setting>\d{1,9})|@(?P<rate>\d*\.?\d+)(?P<times>x?)(?::(?P<of>.+))?)"
)


def parse_methods(text: Sequence[str]) -> list[Method]:
    """`mcode:q3`, `jpeg:10` (a setting), `h265@0.2` (bit/pixel), `h265@1.5x` (times the first method's rate).

    `h265@1.5x:METHOD`: times that of another method before it, by its name. `mcode/NAME:q3`: of that manifold; `mcode/A+B@1x`:
    of the one that needs the fewest bits. `mcode-unrefined`, also `mcode-unrefined/NAME`: never refined.
    """
    methods: list[Method] = []
    for one in text:
        match = _METHOD.fullmatch(one.strip())
        known = ("mcode", *SETTINGS)
        if match is None or match["codec"] not in known or (match["of"] and not match["times"]):
            raise InputError(
                f"--codecs {one}: give CODEC:SETTING, CODEC@BIT_PER_PIXEL or CODEC@TIMESx with a codec of {', '.join(known)}, "
                "as mcode:q3, mcode/NAME:q3, h265@0.2 or jpeg@2x"
            )
        codec, setting = match["codec"], match["setting"]
        if codec != "mcode" and (match["manifold"] or match["unrefined"]):
            raise InputError(f"--codecs {one}: {codec} has no manifolds and is never refined; that is mcode's")
        if setting is not None and codec in SETTINGS and int(setting) not in SETTINGS[codec] and codec != "jpeg2000":
            low, high = min(SETTINGS[codec]), max(SETTINGS[codec])
            raise InputError(f"--codecs {one}: {codec}'s setting is {low} to {high}")
        if codec == "jpeg2000" and setting is not None and not 1 <= int(setting) <= 2000:
            raise InputError(f"--codecs {one}: jpeg2000's setting is the compression ratio, 1 to 2000")
        rate = None if match["rate"] is None else float(match["rate"])
        if rate is not None and not 0 < rate <= 24:
            raise InputError(f"--codecs {one}: a rate is more than 0 and at most 24")
        names = [method.name for method in methods]
        if match["times"] and not names:
            raise InputError(f"--codecs {one}: the first method has none before it to be {rate:g} times of")
        if match["of"] and match["of"] not in names:
            raise InputError(f"--codecs {one}: no method named {match['of']} before it, but {', '.join(names)}")
        name = _method_name(match)
        if name in names:
            raise InputError(f"--codecs {one}: named twice")
        methods.append(
            Method(
                name,
                codec,
                None if setting is None else int(setting),
                None if match["times"] else rate,
                rate if match["times"] else None,
                (match["of"] or names[0]) if match["times"] else None,
                match["manifold"],
                not match["unrefined"],
            )
        )
    if len(methods) < 2:
        raise InputError("--codecs: two methods at least, as --codecs mcode:q3,jpeg@1x")
    return methods


def _method_name(match: re.Match[str]) -> str:
    """The method's folder: mcode-3, mcode-unrefined-NAME-3, mcode-A-to-Z-at-1.5x-of-METHOD."""
    manifolds = (match["manifold"] or "").split("+")
    manifold = re.sub(r"[^\w.-]+", "-", manifolds[0] if len(manifolds) == 1 else f"{manifolds[0]}-to-{manifolds[-1]}")
    at = f"at-{float(match['rate']):g}{match['times']}" if match["setting"] is None else f"{int(match['setting'])}"
    of = f"of-{match['of']}" if match["of"] else ""
    return "-".join(filter(None, (match["codec"] + (match["unrefined"] or ""), manifold, at, of)))


def prepare(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    methods: Sequence[Method],
    *,
    manifolds: Sequence[str | os.PathLike[str] | Manifold] = ("general",),
    coder: str = "huffman",
    refine: int = 0,
    refine_by: str = "eye",
    perceptual: str | os.PathLike[str] | None = None,
    device: str = "auto",
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Prepared:
    """Writes the folder of a study: the original and every method's pictures as PNG, and their bits per pixel in NOTE.

    manifolds: names, files or loaded ones, of which those are run that a method names. coder, refine, refine_by, perceptual:
    of MCode's methods, as when encoding. At a rate, each picture gets the cheapest setting with at least that many bits, as
    the paper gives the methods compared with (section 5, User Study), or the codec's best. The folder appears whole or not at
    all. Raises InputError, ManifoldError.
    """
    from mcode.evaluation.metrics import psnr

    folder, output = output, Path(os.path.realpath(output))  # "." and links have no name to write beside
    _check_replaceable(output, folder, force)
    source = Path(images)
    if not source.is_dir():
        raise InputError(f"{source}: no such folder of pictures")
    pictures = _pictures_in(source)
    if not pictures:
        raise InputError(f"{source}: no pictures in it")
    options = _Options(coder, refine, refine_by, perceptual, device)
    ladders = _ladders(methods, manifolds, options)
    notes: dict[str, dict[str, Any]] = {method.name: {} for method in methods}
    hidden = partial_name(f".{output.name}")
    partial = output / hidden if output.is_dir() else output.with_name(hidden)  # within: a mount point has nothing beside it
    try:
        for name in (ORIGINAL, *notes):
            (partial / name).mkdir(parents=True)
        for done, (picture, path) in enumerate(pictures.items()):
            rgb = read_picture(path)
            Image.fromarray(rgb).save(partial / ORIGINAL / f"{picture}.png")
            for number, method in enumerate(methods):
                wanted = method.bpp
                if method.times is not None and method.of is not None:
                    wanted = method.times * notes[method.of][picture]["bpp"]
                found = [_at(ladder, method.setting, wanted, rgb) for ladder in ladders[method.name]]
                coded = _cheapest(found, wanted)
                notes[method.name][picture] = {
                    "setting": coded.setting,
                    **({"manifold": coded.manifold} if coded.manifold is not None else {}),
                    "bytes": coded.bytes,
                    "bpp": coded.bpp,
                    "psnr_db": psnr(rgb, coded.decoded),
                    "reached": wanted is None or coded.bpp >= wanted,
                    "at_floor": wanted is not None and _at_floor(found, wanted) and coded.bpp > wanted * (1 + FLOOR_SHARE),
                }
                Image.fromarray(coded.decoded).save(partial / method.name / f"{picture}.png")
                if progress:
                    progress(done * len(methods) + number + 1, len(pictures) * len(methods))
        made = tuple(_prepared(method, ladders[method.name], options, notes[method.name]) for method in methods)
        record = {each.method: {**each.__dict__, "pictures": notes[each.method]} for each in made}
        note = {"pictures": len(pictures), "methods": record}
        (partial / NOTE).write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if output.exists():
            _put_in(output, folder, partial, force)
        else:
            os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Prepared(os.fspath(folder), len(pictures), made)


def _check_replaceable(output: Path, name: str | os.PathLike[str], force: bool) -> list[Path]:
    """What of the folder is to make way: a study's note and its folders, if nothing else lies there. name: output, as given."""
    if not output.exists() or (output.is_dir() and all(path.name[:1] == "." for path in output.iterdir())):
        return []
    if not force:
        raise InputError(f"{name}: exists; add --force to replace it or choose another name")
    if not (output / NOTE).is_file():
        raise InputError(f"{name}: has no {NOTE}, so it is no study and is not replaced; choose another name")
    try:
        methods = json.loads((output / NOTE).read_bytes())["methods"]
        named = {method: {f"{picture}.png" for picture in facts["pictures"]} for method, facts in methods.items()}
        named[ORIGINAL] = set().union(*named.values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: its {NOTE} is damaged, so it is not replaced; choose another name") from error
    here = sorted(output.iterdir())
    folders = [path for path in here if path.name in named and path.is_dir() and not path.is_symlink()]
    others = [path for path in here if path not in (*folders, output / NOTE)]
    for folder in folders:
        others += [path for path in sorted(folder.iterdir()) if path.name not in named[folder.name] or path.is_dir()]
    for path in others:
        if path.name[:1] != ".":
            raise InputError(f"{name} holds {path.relative_to(output)}, which is no part of the study; move it")
    return [*folders, output / NOTE]


def _put_in(output: Path, name: str | os.PathLike[str], made: Path, force: bool) -> None:
    """The study's parts into a folder that exists, which others may stand in, in place of an earlier study's, which comes back
    where that fails. made: within that folder."""
    old = _check_replaceable(output, name, force)  # answers may have come while pictures were coded
    aside = made.with_name(f"{made.name}-old")
    aside.mkdir()
    put: list[Path] = []
    try:
        for part in old:
            os.replace(part, aside / part.name)
        for part in sorted(made.iterdir(), key=lambda path: path.name == NOTE):
            os.replace(part, output / part.name)
            put.append(output / part.name)
    except BaseException:
        for part in put:
            os.replace(part, made / part.name)
        for part in aside.iterdir():
            os.replace(part, output / part.name)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@dataclass(frozen=True)
class _Options:
    """How manifolds are loaded and encode."""

    coder: str
    refine: int
    refine_by: str
    perceptual: str | os.PathLike[str] | None
    device: str


@dataclass(frozen=True)
class _Ladder:
    """A codec's settings, the fewest bits first. model: MCode's."""

    settings: tuple[int, ...]
    still: Callable[[int], StillCodec]
    model: Manifold | None = None

    @property
    def manifold(self) -> str | None:
        return None if self.model is None else self.model.name


@dataclass(frozen=True)
class _Coded:
    """manifold: its name, of MCode. decoded: uint8 (H, W, 3). at_floor: the setting is the cheapest."""

    setting: int
    manifold: str | None
    at_floor: bool
    bytes: int
    decoded: np.ndarray

    @property
    def bpp(self) -> float:
        return self.bytes * 8 / (self.decoded.shape[0] * self.decoded.shape[1])


def _prepared(method: Method, ladders: Sequence[_Ladder], options: _Options, note: dict[str, Any]) -> PreparedMethod:
    settings = sorted({each["setting"] for each in note.values()})
    manifolds = {ladder.model.name: ladder.model.id for ladder in ladders if ladder.model is not None}
    refine = options.refine if manifolds and method.refined else 0
    return PreparedMethod(
        method.name,
        method.codec,
        str(settings[0]) if len(settings) == 1 else f"{settings[0]}-{settings[-1]}",
        bpp=sum(each["bpp"] for each in note.values()) / len(note),
        psnr_db=sum(each["psnr_db"] for each in note.values()) / len(note),
        reached=sum(each["reached"] for each in note.values()),
        at_floor=sum(each["at_floor"] for each in note.values()),
        manifolds=manifolds,
        coder=options.coder if manifolds else None,
        refine=refine,
        refine_by=options.refine_by if refine else None,
    )


def _at(ladder: _Ladder, setting: int | None, wanted: float | None, rgb: np.ndarray) -> _Coded:
    """At the setting, or at the cheapest with at least `wanted` bits per pixel, or at the last."""
    made: dict[int, _Coded] = {}

    def coded(setting: int) -> _Coded:
        if setting not in made:
            made[setting] = _Coded(setting, ladder.manifold, setting == ladder.settings[0], *ladder.still(setting).code(rgb))
        return made[setting]

    if setting is not None:
        return coded(setting)
    assert wanted is not None
    index = bisect_left(ladder.settings, wanted, key=lambda setting: coded(setting).bpp)
    return coded(ladder.settings[min(index, len(ladder.settings) - 1)])


def _cheapest(found: Sequence[_Coded], wanted: float | None) -> _Coded:
    """With at least `wanted` bits per pixel, else the nearest to it."""
    enough = [each for each in found if wanted is None or each.bpp >= wanted]
    return min(enough, key=lambda each: each.bytes) if enough else max(found, key=lambda each: each.bytes)


def _at_floor(found: Sequence[_Coded], wanted: float) -> bool:
    """Whether no setting of any ladder has fewer than `wanted` bits per pixel. found: of each ladder what `_at` gave."""
    return all(each.at_floor and each.bpp >= wanted for each in found)


def _ladders(
    methods: Sequence[Method], manifolds: Sequence[str | os.PathLike[str] | Manifold], options: _Options
) -> dict[str, tuple[_Ladder, ...]]:
    """By method; one for each of its manifolds. Raises InputError, ManifoldError before anything is coded."""
    if not options.refine and (spared := [method.name for method in methods if not method.refined]):
        raise InputError(f"--codecs: {spared[0]} is as mcode where nothing is refined; give --refine STEPS, or name it mcode")
    chosen = _chosen(methods, manifolds, options.device)
    refiners: dict[str, Refiner] = {}
    found: dict[str, tuple[_Ladder, ...]] = {}
    for method in methods:
        if method.codec != "mcode":
            found[method.name] = (_Ladder(SETTINGS[method.codec], _maker(method.codec)),)
            continue
        for model in chosen[method.name]:
            _check_suits(model, method, options)
            if options.refine and method.refined and model.name not in refiners:
                from mcode.refine import Refiner

                refiners[model.name] = Refiner(model, options.refine, judge=options.refine_by, weights=options.perceptual)
        found[method.name] = tuple(
            _Ladder(
                tuple(range(1, model.qualities + 1)),
                _mcode_maker(model, options.coder, refiners.get(model.name) if method.refined else None),
                model,
            )
            for model in chosen[method.name]
        )
    return found


def _check_suits(model: Manifold, method: Method, options: _Options) -> None:
    if model.frame_size is not None:
        width, height = model.frame_size
        raise InputError(f"manifold {model.name} holds {width}x{height} alone; give one for pictures of any size")
    if options.coder == "range" and model.hyper is None:
        raise InputError(f"--coder range: manifold {model.name} has no hyperprior; its coders are huffman and fixed")
    if method.setting is not None and not 1 <= method.setting <= model.qualities:
        raise InputError(f"mcode:q{method.setting}: manifold {model.name} has the qualities 1 to {model.qualities}")


def _chosen(
    methods: Sequence[Method], manifolds: Sequence[str | os.PathLike[str] | Manifold], device: str
) -> dict[str, tuple[Manifold, ...]]:
    """MCode's methods' manifolds, by method. Only those named are loaded, each once."""
    from mcode.manifold import load, read_info

    if all(method.codec != "mcode" for method in methods):
        return {}
    known: dict[str, str | os.PathLike[str] | Manifold] = {}
    for given in manifolds:
        name = read_info(given).name if isinstance(given, (str, os.PathLike)) else given.name
        if name in known:
            raise InputError(f"--manifold: two manifolds are named {name}; give each once")
        known[name] = given
    named: dict[str, tuple[str, ...]] = {}
    same: dict[tuple[object, ...], str] = {}
    for method in methods:
        if method.codec != "mcode":
            continue
        wanted = method.manifold if method.manifold is not None else next(iter(known))
        names = (wanted,) if wanted in known else tuple(dict.fromkeys(wanted.split("+")))
        if missing := [name for name in names if name not in known]:
            raise InputError(f"--codecs mcode/{missing[0]}: no such manifold; --manifold gives {', '.join(known)}")
        if method.setting is not None and len(names) > 1:
            raise InputError(f"--codecs: {method.name} has several manifolds; these are for a rate, as mcode/{wanted}@1x")
        key = (names, method.setting, method.bpp, method.times, method.of, method.refined)
        if (other := same.setdefault(key, method.name)) != method.name:
            raise InputError(f"--codecs: {other} and {method.name} are the same; give one of them")
        named[method.name] = names
    models: dict[str, Manifold] = {}
    for name in dict.fromkeys(name for names in named.values() for name in names):
        given = known[name]
        models[name] = load(given, device) if isinstance(given, (str, os.PathLike)) else given
    return {method: tuple(models[name] for name in names) for method, names in named.items()}


def _mcode_maker(model: Manifold, coder: str, refiner: Refiner | None) -> Callable[[int], StillCodec]:
    from mcode.evaluation import stills

    return lambda quality: stills.mcode_still(model, quality, coder, refiner)


def _maker(codec: str) -> Callable[[int], StillCodec]:
    from mcode.evaluation import stills

    if codec in ("h264", "h265", "av1"):
        return lambda crf: stills.intra(codec, crf, "4" if codec == "av1" else "medium")
    return {"jpeg": stills.jpeg, "webp": stills.webp, "jpeg2000": stills.jpeg2000}[codec]


def _pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without suffix, in order."""
    found: dict[str, Path] = {}
    for path in _images(folder):
        _name(path)
        if path.stem in found:
            raise InputError(f"{path}: {found[path.stem].name} has the same name; keep one of them")
        found[path.stem] = path
    return found


def _name(path: Path) -> str:
    """The last part of a path, which is to be noted as UTF-8."""
    if not is_text(path.name):
        raise InputError(f"{path}: its name is not UTF-8; rename it")
    return path.name


def _images(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in Image.registered_extensions() and path.name[:1] != ".":
            yield path
