"""Scores of the methods from raters' answers: Elo over orders of the answers, as in the paper, and Bradley-Terry's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcode.errors import InputError
from mcode.evaluation.study.answers import Answer

K, SPREAD, START = 30.0, 400.0, 1500.0
"""Elo's step and scale as in the paper, and the score at which every method starts."""
SHUFFLES = 10_000
MOST_GAMES = 300_000_000
"""Answers times shuffles at most (about half a minute); beyond that there are fewer shuffles, and the report says so."""
MOST_METHODS = 500
"""Scores need memory for the square of their number."""


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
