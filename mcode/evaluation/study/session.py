"""A rater's way through a study: which two methods of which picture to show next, where, and on which side."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcode.errors import InputError
from mcode.evaluation.study.answers import Answer, AnswersFile
from mcode.evaluation.study.material import Material
from mcode.text import is_text

CROP = 768
"""Pixels of the crop's side at most, as in the paper: two of them stand side by side on a screen without scaling."""


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
        self._file = AnswersFile(self.output, self.rater)
        self._side = crop
        self._rankings = {name: Ranking(self._shuffled(material.methods, name)) for name in material.pictures}
        self._order = self._shuffled(material.pictures, "")
        self._crops: dict[str, tuple[int, int, int, int]] = {}
        self._drawn: dict[str, int] = {}
        self.answered = 0
        for number, answer in enumerate(self._file.earlier, start=2):
            if answer.rater == self.rater:
                self._replay(answer, number)
        self._file.begin()

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
        self._file.append(answer)
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
