"""A cartoon head that looks about, blinks and speaks: a few dozen lit shapes. Its unit is half the head's width."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mcode.testclip.canvas import SKIN, Array, Shape, View, between, colour, ellipse, limb, mix, ramp


@dataclass(frozen=True)
class Looks:
    """What stays the same about a person."""

    skin: Array
    hair: Array
    iris: Array
    lips: Array
    long_hair: bool = True


@dataclass(frozen=True)
class Mood:
    """What changes with time. All from about -1 or 0 to 1."""

    yaw: float = 0.0
    """Turn of the head; positive to the viewer's right."""
    pitch: float = 0.0
    """Nod; positive down."""
    gaze: tuple[float, float] = (0.0, 0.0)
    lids: float = 1.0
    """1 open, 0 closed."""
    brows: float = 0.0
    mouth: float = 0.0
    """How far the jaw is down."""
    wide: float = 0.5
    """0 the lips of "oo", 1 those of "ee"."""


def cast(rng: np.random.Generator) -> Looks:
    """Somebody, drawn by the generator."""
    skin = colour(rng.choice(["#f0bf9a", "#d99a6c", "#a86a43", "#f3c9ae"]))
    hair = colour(rng.choice(["#7a3b1e", "#3a241a", "#a8612a", "#4b2a20"]))
    iris = colour(rng.choice(["#3f7f86", "#5b7f4a", "#7a5230"]))
    return Looks(skin, hair, iris, mix(skin, colour("#c0392f"), 0.55))


def blink(t: float, rng_seed: int) -> float:
    """Openness of the lids at t: a blink of 0.2 s every 1.5 to 3.5 seconds."""
    rng = np.random.default_rng(rng_seed)
    at = 0.0
    while at < t + 1:
        at += rng.uniform(1.5, 3.5)
        if abs(t - at) < 0.13:
            return float(ramp(abs(t - at), 0.03, 0.13))
    return 1.0


def paint_back_hair(view: View, looks: Looks, mood: Mood) -> None:
    """The hair behind the neck: goes before body and head."""
    if looks.long_hair:
        shift = -0.12 * mood.yaw
        shape = ellipse(shift, 0.10, 1.24, 1.32, 2.5).melt(ellipse(shift * 1.5, 0.85, 1.12, 0.72, 2.4), 0.3)
        view.paint(shape, _strands(looks.hair * 0.6, 0.0), bevel=0.6, gloss=0.02)


def paint_head(view: View, looks: Looks, mood: Mood) -> None:
    """The head without neck and back hair."""
    jaw = 0.17 * mood.mouth
    yaw, pitch = mood.yaw, mood.pitch

    def on_face(x: float, y: float, depth: float = 1.0) -> tuple[float, float]:
        """Where a point of the face goes as the head turns: nearer points go further."""
        return x * (1 - 0.10 * yaw * np.sign(x) * (x != 0)) + 0.20 * yaw * depth, y + 0.13 * pitch * depth

    for side in (-1, 1):  # ears
        x = side * 1.0 - 0.07 * yaw
        view.paint(ellipse(x, 0.10, 0.19, 0.27), looks.skin * 0.9, bevel=0.13, wrap=SKIN)
        view.paint(ellipse(x - side * 0.02, 0.11, 0.09, 0.16), looks.skin * np.array([0.72, 0.5, 0.45]), soft=0.08)

    skull = ellipse(0, -0.22, 1.0, 1.0, 2.2)
    chin = ellipse(0.07 * yaw, 0.58 + jaw * 0.8, 0.66, 0.58 + jaw * 0.35, 2.15)
    face = skull.melt(chin, 0.45)
    view.paint(face, _complexion(looks, on_face), bevel=0.95, gloss=0.05, wrap=SKIN, shadow=(0.0, 0.12, 0.16, 0.35))

    for side in (-1, 1):
        _eye(view, looks, mood, on_face, side, face)
    _mouth(view, looks, mood, on_face, jaw)
    _nose(view, looks, on_face)
    _hair(view, looks, on_face, face)
    for side in (-1, 1):  # brows, over the fringe's shadow
        x, y = on_face(side * 0.40, -0.47 - 0.10 * mood.brows, 1.05)
        inner = (x - side * 0.20, y + 0.03 - 0.03 * mood.brows)
        brow = limb(inner, (x + side * 0.06, y - 0.05), 0.055, 0.05) | limb(
            (x + side * 0.06, y - 0.05), (x + side * 0.24, y + 0.04), 0.05, 0.022
        )
        view.paint(brow, looks.hair * 0.55, soft=0.02, clip=face)


OnFace = Callable[..., tuple[float, float]]


def _complexion(looks: Looks, on_face: OnFace) -> Callable[[Array, Array], Array]:
    cheeks = [on_face(side * 0.55, 0.26) for side in (-1, 1)]
    blush = mix(looks.skin, colour("#d8503c"), 0.5)

    def albedo(x: Array, y: Array) -> Array:
        share = sum(np.exp(-(((x - cx) / 0.26) ** 2) - ((y - cy) / 0.20) ** 2) for cx, cy in cheeks)
        return mix(np.broadcast_to(looks.skin, (*x.shape, 3)), blush, 0.42 * np.clip(share, 0, 1))

    return albedo


def _strands(base: Array, part: float) -> Callable[[Array, Array], Array]:
    def albedo(x: Array, y: Array) -> Array:
        angle = np.arctan2(x - part, y + 1.6)
        stripes = np.sin(angle * 46 + 3 * np.sin(angle * 9)) * 0.5 + np.sin(angle * 101 + y) * 0.25
        return base * (1 + 0.20 * stripes)[..., None]

    return albedo


def _eye(view: View, looks: Looks, mood: Mood, on_face: OnFace, side: int, face: Shape) -> None:
    x, y = on_face(side * 0.40, -0.09, 1.0)
    rx, ry = 0.205 * (1 + 0.10 * side * -mood.yaw), 0.235
    view.paint(ellipse(x, y - 0.01, rx * 1.5, ry * 1.4), looks.skin * np.array([0.80, 0.62, 0.58]), soft=0.22, opacity=0.35)
    ball = ellipse(x, y, rx, ry, 2.3)
    gx = x + 0.075 * mood.gaze[0] + 0.05 * mood.yaw
    gy = y + 0.06 * mood.gaze[1] + 0.015

    def iris(px: Array, py: Array) -> Array:
        r = np.hypot(px - gx, py - gy) / 0.135
        angle = np.arctan2(py - gy, px - gx)
        rays = 1 + 0.12 * np.sin(angle * 17) * ramp(r, 0.3, 0.7)
        # Lighter below, where light that came through the cornea falls; a dark ring outside.
        tone = (0.65 + 0.9 * np.clip((py - gy) / 0.135, -0.3, 1)) * rays * (1 - 0.65 * ramp(r, 0.78, 1.0))
        return looks.iris * tone[..., None]

    view.paint(ball, colour("#f4efe8") * 0.92, bevel=0.22)
    view.paint(ellipse(gx, gy, 0.135, 0.14), iris, clip=ball)
    view.paint(ellipse(gx, gy, 0.066, 0.07), colour("#0c0908"), clip=ball)
    view.paint(ellipse(x, y - ry * 1.05, rx * 1.3, ry * 0.75), colour("#2a1714"), clip=ball, soft=0.16, opacity=0.55)
    view.paint(ellipse(gx - 0.05, gy - 0.06, 0.036, 0.04), np.full(3, 2.2, np.float32), clip=ball, glow=True, soft=0.02)
    view.paint(ellipse(gx + 0.055, gy + 0.055, 0.02, 0.02), np.full(3, 0.8, np.float32), clip=ball, glow=True, soft=0.03)

    # Lids: the part of a slightly larger ball above a curve that comes down, and below one that comes up a little.
    shut = 1 - mood.lids * (0.86 + 0.10 * mood.brows)
    lid_y = y - ry * 1.1 + 1.75 * ry * shut
    arch = 0.16 * (1 - 1.75 * shut)
    larger = ellipse(x, y, rx * 1.10, ry * 1.08, 2.3)

    def edge(px: Array) -> Array:
        return lid_y - arch * (1 - ((px - x) / rx) ** 2) + 0.10

    lid = replace(larger & between(lambda px: px * 0 - 9, edge, (x - 1, y - 1, x + 1, y + 1)), bounds=larger.bounds)
    view.paint(lid, looks.skin * np.array([0.86, 0.76, 0.72]), bevel=0.18, wrap=SKIN)
    lash_width = 0.034
    lash = between(lambda px: edge(px) - lash_width, lambda px: edge(px) + 0.012, (x - 1, y - 1, x + 1, y + 1))
    grown = ellipse(x + side * 0.01, y, rx * 1.14, ry * 1.12, 2.3)
    view.paint(replace(lash & grown, bounds=grown.bounds), colour("#22120e"), soft=0.012)
    low = between(
        lambda px: y + ry * (0.93 - 0.12 * shut) - 0.13 * ((px - x) / rx) ** 2 - 0.05,
        lambda px: px * 0 + 9,
        (x - 1, y - 1, x + 1, y + 1),
    )
    view.paint(replace(larger & low, bounds=larger.bounds), looks.skin * np.array([0.93, 0.84, 0.80]), bevel=0.15, wrap=SKIN)
    tip = (x + side * rx * 1.22, float(edge(np.array([x + side * rx])).item()) - 0.07)
    view.paint(
        limb((x + side * rx * 0.92, float(edge(np.array([x + side * rx * 0.9])).item())), tip, 0.022, 0.006),
        colour("#22120e"),
        clip=face,
    )


def _nose(view: View, looks: Looks, on_face: OnFace) -> None:
    x, y = on_face(0, 0.24, 1.75)
    bridge_x, bridge_y = on_face(0, -0.22, 1.15)
    dark = looks.skin * np.array([0.62, 0.40, 0.34])
    view.paint(limb((bridge_x + 0.10, bridge_y), (x + 0.14, y - 0.02), 0.05, 0.09), dark, soft=0.14, opacity=0.30)
    view.paint(limb((bridge_x - 0.01, bridge_y), (x - 0.02, y - 0.05), 0.03, 0.07), looks.skin * 1.25, soft=0.12, opacity=0.35)
    tip = (
        ellipse(x, y, 0.13, 0.105)
        .melt(ellipse(x - 0.10, y + 0.03, 0.065, 0.055), 0.06)
        .melt(ellipse(x + 0.10, y + 0.03, 0.065, 0.055), 0.06)
    )
    view.paint(ellipse(x + 0.02, y + 0.10, 0.17, 0.07), dark, soft=0.10, opacity=0.55)
    for side in (-1, 1):
        view.paint(ellipse(x + side * 0.065, y + 0.075, 0.035, 0.022), looks.skin * np.array([0.25, 0.11, 0.09]), soft=0.02)
    view.paint(tip, mix(looks.skin, colour("#d8503c"), 0.14), bevel=0.16, gloss=0.10, wrap=SKIN, soft=0.035)


def _mouth(view: View, looks: Looks, mood: Mood, on_face: OnFace, jaw: float) -> None:
    x, y = on_face(0, 0.60, 1.25)
    y += jaw * 0.25
    half = 0.235 + 0.13 * mood.wide - 0.03 * mood.mouth
    open_up, open_down = 0.05 * mood.mouth, 0.30 * mood.mouth
    smile = 0.055 + 0.02 * mood.wide

    def bow(px: Array) -> Array:
        return np.clip(1 - ((px - x) / half) ** 2, 0, None)

    def line(px: Array) -> Array:
        return y - smile * ((px - x) / half) ** 2 + 0.02

    def upper(px: Array) -> Array:
        return line(px) - open_up * bow(px)

    def lower(px: Array) -> Array:
        return line(px) + open_down * bow(px)

    box = (x - half, y - 0.35, x + half, y + 0.6)
    u_lip, l_lip = 0.085 - 0.015 * mood.wide, 0.115 - 0.02 * mood.wide

    def cupid(px: Array) -> Array:
        u = (px - x) / half
        return upper(px) - u_lip * np.sqrt(bow(px) + 1e-4) * (1 - 0.35 * np.exp(-((u / 0.16) ** 2)))

    def pout(px: Array) -> Array:
        return lower(px) + l_lip * np.sqrt(bow(px) + 1e-4)

    view.paint(
        ellipse(x, float(pout(np.array([x])).item()) + 0.07, half * 0.6, 0.05),
        looks.skin * np.array([0.6, 0.4, 0.36]),
        soft=0.10,
        opacity=0.5,
    )
    for side in (-1, 1):  # the dimples
        corner = (x + side * (half + 0.03), y - smile + 0.02)
        view.paint(ellipse(*corner, 0.045, 0.05), looks.skin * np.array([0.5, 0.28, 0.24]), soft=0.07, opacity=0.5)
    view.paint(between(cupid, lambda px: upper(px) + 0.012, box), looks.lips * 0.72, bevel=0.05, wrap=SKIN, soft=0.012)
    view.paint(between(lambda px: lower(px) - 0.012, pout, box), looks.lips, bevel=0.07, gloss=0.16, wrap=SKIN, soft=0.012)
    hole = between(lambda px: upper(px) - 0.006, lambda px: lower(px) + 0.006, box)
    view.paint(hole, colour("#3a0d0e"), opacity=1.0)
    if mood.mouth > 0.04:
        tongue = ellipse(x, y + 0.02 + open_down * 1.02, half * 0.62, 0.13 + 0.05 * mood.mouth)
        view.paint(tongue, colour("#c4504c"), clip=hole, bevel=0.10, gloss=0.08, wrap=SKIN)
        teeth = between(lambda px: upper(px) - 0.02, lambda px: upper(px) + 0.055 + 0.06 * mood.mouth + 0 * px, box)
        view.paint(replace(teeth, bounds=hole.bounds), colour("#efe7da"), clip=hole, bevel=0.05)
        shade = between(lambda px: upper(px) - 0.03, lambda px: upper(px) + 0.035, box)
        view.paint(shade, colour("#2a0c0c"), clip=hole, soft=0.05, opacity=0.55)


def _hair(view: View, looks: Looks, on_face: OnFace, face: Shape) -> None:
    part_x, _ = on_face(-0.30, -1.0, 0.6)
    cx, _ = on_face(0, 0, 0.25)

    def hairline(px: Array) -> Array:
        u = px - part_x
        left = -0.80 + 0.62 * np.clip(-u, 0, None) ** 1.5 * 1.5
        right = -0.80 + 0.34 * np.clip(u, 0, None) ** 1.35
        return np.where(u < 0, left, right) - 0.05 * np.exp(-((u / 0.12) ** 2))

    cap = ellipse(cx * 0.6, -0.20, 1.13, 1.14, 2.25)
    fringe = cap & between(lambda px: px * 0 - 9, hairline, (-2, -2, 2, 2))
    locks = limb((-1.03 + cx, -0.35), (-1.04 + cx, 0.45), 0.16, 0.09).melt(
        limb((1.03 + cx, -0.35), (1.05 + cx, 0.50), 0.16, 0.09), 0.02
    )
    hair = replace(fringe, bounds=cap.bounds).melt(locks, 0.12) if looks.long_hair else replace(fringe, bounds=cap.bounds)
    albedo = _strands(looks.hair, part_x)
    view.paint(hair, albedo, bevel=0.42, gloss=0.05, shadow=(0.04, 0.10, 0.09, 0.35))
    shine_y = -0.86
    shine = between(
        lambda px: shine_y + 0.30 * (px + 0.25) ** 2 + 0.02 * np.sin(px * 41),
        lambda px: shine_y + 0.13 + 0.30 * (px + 0.25) ** 2 + 0.03 * np.sin(px * 57),
        (-0.85, -1.2, 0.75, -0.3),
    )
    view.paint(shine, np.clip(looks.hair * 3.2 + 0.03, 0, 0.8), clip=hair, soft=0.10, opacity=0.40)


def neck(view: View, looks: Looks, mood: Mood, bottom: float) -> None:
    """From under the chin down to y = bottom."""
    shape = limb((0.05 * mood.yaw, 0.55), (0, bottom), 0.40, 0.46)
    view.paint(shape, looks.skin * 0.93, bevel=0.42, wrap=SKIN)


def turn(t: float, phase: float) -> tuple[float, float, float]:
    """Yaw, pitch and tilt (radians) of a head at ease: slow, never quite repeating."""
    yaw = 0.55 * math.sin(0.9 * t + phase) + 0.30 * math.sin(2.3 * t + 2 * phase)
    pitch = 0.35 * math.sin(1.3 * t + 1.7 * phase) + 0.2 * math.sin(3.1 * t)
    return yaw, pitch, 0.045 * math.sin(0.7 * t + 0.5 * phase) + 0.02 * math.sin(1.9 * t)
