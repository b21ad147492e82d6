"""Drawn pictures for training: flat and shaded areas, shapes, lines, text, as on slides, test cards and in cartoons."""

from __future__ import annotations

import cv2
import numpy as np

_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_PLAIN,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
)
_MOST_SHAPES = 12
_SHADED = 0.3
_OVERSIZE = 2
"""Drawn at so many times the size and averaged, which softens edges as cameras and scaling do."""

Colour = tuple[int, int, int]


def draw_graphic(size: int, rng: np.random.Generator) -> np.ndarray:
    """One picture, uint8 (size, size, 3) RGB: a flat or shaded ground, and up to twelve things on it, often none."""
    side = _OVERSIZE * size
    canvas = _ground(side, rng)
    for _ in range(rng.integers(_MOST_SHAPES + 1)):
        _DRAW[rng.integers(len(_DRAW))](canvas, _colour(rng), rng)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)


def _colour(rng: np.random.Generator) -> Colour:
    """A corner of the colour cube, any colour, a grey, or a saturated one: each as often."""
    kind = rng.integers(4)
    if kind == 0:
        found = 255 * rng.integers(0, 2, 3)
    elif kind == 1:
        found = rng.integers(0, 256, 3)
    elif kind == 2:
        found = np.full(3, rng.integers(0, 256))
    else:
        hsv = np.array([[[rng.integers(180), rng.integers(150, 256), rng.integers(100, 256)]]], np.uint8)
        found = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
    red, green, blue = (int(value) for value in found)
    return red, green, blue


def _ground(side: int, rng: np.random.Generator) -> np.ndarray:
    first, second = (np.array(_colour(rng), np.float32) for _ in range(2))
    if rng.random() >= _SHADED:
        second = first
    line = first + (second - first) * np.linspace(0, 1, side, dtype=np.float32)[:, None]
    across = line[None] if rng.random() < 0.5 else line[:, None]
    return np.broadcast_to(across, (side, side, 3)).round().astype(np.uint8)


def _points(canvas: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """int32 (count, 2): x and y, up to an eighth of the side outside."""
    side = len(canvas)
    return rng.integers(-side // 8, side + side // 8, (count, 2)).astype(np.int32)


def _rectangle(canvas: np.ndarray, colour: Colour, rng: np.random.Generator) -> None:
    first, second = _points(canvas, 2, rng).tolist()
    cv2.rectangle(canvas, first, second, colour, cv2.FILLED)


def _disc(canvas: np.ndarray, colour: Colour, rng: np.random.Generator) -> None:
    centre = _points(canvas, 1, rng)[0].tolist()
    cv2.circle(canvas, centre, int(rng.integers(4, len(canvas) // 3)), colour, cv2.FILLED, cv2.LINE_AA)


def _line(canvas: np.ndarray, colour: Colour, rng: np.random.Generator) -> None:
    first, second = _points(canvas, 2, rng).tolist()
    cv2.line(canvas, first, second, colour, int(rng.integers(1, 24)), cv2.LINE_AA)


def _polygon(canvas: np.ndarray, colour: Colour, rng: np.random.Generator) -> None:
    cv2.fillPoly(canvas, [_points(canvas, int(rng.integers(3, 7)), rng)], colour, cv2.LINE_AA)


def _arc(canvas: np.ndarray, colour: Colour, rng: np.random.Generator) -> None:
    centre = _points(canvas, 1, rng)[0].tolist()
    axes = rng.integers(4, len(canvas) // 2, 2).tolist()
    turned, end, width = float(rng.uniform(0, 180)), float(rng.uniform(60, 360)), int(rng.integers(1, 10))
    cv2.ellipse(canvas, centre, axes, turned, 0, end, colour, width, cv2.LINE_AA)


def _text(canvas: np.ndarray, colour: Colour, rng: np.random.Generator) -> None:
    letters = "".join(chr(code) for code in rng.integers(33, 123, rng.integers(3, 16)))
    font, height = _FONTS[rng.integers(len(_FONTS))], float(rng.uniform(0.5, 4))
    width = max(1, int(height * rng.uniform(1, 3)))
    x, y = _points(canvas, 1, rng)[0].tolist()
    for row in range(rng.integers(1, 5)):
        cv2.putText(canvas, letters[row:], (x, y + round(row * 34 * height)), font, height, colour, width, cv2.LINE_AA)


_DRAW = (_rectangle, _disc, _line, _polygon, _arc, _text)
