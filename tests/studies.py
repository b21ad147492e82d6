"""Small user studies for tests: their folders, raters who see every difference, answers of known skill."""

from __future__ import annotations

from dataclasses import astuple, fields
from pathlib import Path

import numpy as np
from PIL import Image

from mcode.evaluation.study import ORIGINAL, Answer, Session, material, preparing
from mcode.video import read_picture

METHODS = ("good", "fair", "poor")
"""The best first; each one's pictures stand further from the original."""


def picture(seed: int, width: int = 96, height: int = 80) -> np.ndarray:
    """A grey slope with soft colours on it: what every codec can code well or badly."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(40, 200, width)[None, :, None] + np.linspace(-20, 20, height)[:, None, None]
    return np.clip(slope + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def write_study(folder: Path, methods=METHODS, pictures=("a", "b")) -> Path:
    for number, name in enumerate(pictures):
        rgb = picture(number)
        for step, method in enumerate((ORIGINAL, *methods)):
            (folder / method).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(rgb.astype(int) + 9 * step, 0, 255).astype(np.uint8)).save(folder / method / f"{name}.png")
    return folder


def answer_well(session: Session, most: int = 1000) -> None:
    """Answers as one who sees every difference."""
    for _ in range(most):
        if (question := session.question) is None:
            return
        session.answer(left=METHODS.index(question.left) < METHODS.index(question.right), looks=1, seconds=1.234)


def turn_pictures(monkeypatch):
    """Pictures are read as if each lay on its side, which only `read_picture` knows of."""
    for module in (material, preparing):
        monkeypatch.setattr(module, "read_picture", lambda path: np.rot90(read_picture(path)).copy())


SKILL = {"a": 1660.0, "b": 1560.0, "c": 1500.0, "d": 1430.0, "e": 1350.0}


def random_games(skill: dict[str, float], count: int, seed: int = 0) -> np.ndarray:
    """(count, 2), winner and loser by their places in skill: random pairs, preferred by the logistic law of Elo's model."""
    rng, truth = np.random.default_rng(seed), np.array(list(skill.values()))
    first = rng.integers(len(truth), size=count)
    second = (first + rng.integers(1, len(truth), size=count)) % len(truth)
    wins = rng.random(count) < 1 / (1 + 10 ** ((truth[second] - truth[first]) / 400))
    return np.where(wins[:, None], np.stack([first, second], 1), np.stack([second, first], 1))


def answers_of(games: np.ndarray, skill: dict[str, float], raters: int = 4) -> list[Answer]:
    """In turns of the raters, and on twenty pictures."""
    names = list(skill)
    return [
        Answer(f"rater {number % raters}", 0, f"{number % 20}", names[better], names[worse], names[better], 0, 0, 8, 8, 1, 1.0)
        for number, (better, worse) in enumerate(games)
    ]


def simulated(skill: dict[str, float], count: int) -> list[Answer]:
    return answers_of(random_games(skill, count), skill)


def write_answers(path: Path, answers: list[Answer]) -> Path:
    rows = [",".join(field.name for field in fields(Answer)), *(",".join(map(str, astuple(answer))) for answer in answers)]
    path.write_text("\n".join(rows) + "\n")
    return path
