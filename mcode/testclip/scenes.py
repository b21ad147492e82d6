"""The three scenes: each is built once for a size and a seed, then painted at any time t (seconds)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from mcode.testclip.canvas import (
    CLOTH,
    SKIN,
    Array,
    Canvas,
    Light,
    View,
    between,
    colour,
    ellipse,
    film,
    limb,
    mix,
    noise,
    ramp,
)
from mcode.testclip.head import Mood, blink, cast, neck, paint_back_hair, paint_head, turn
from mcode.testclip.sound import BEAT_S, speech

Size = tuple[int, int]


def over(canvas: Canvas, background: Array) -> Array:
    """The canvas in front of a background, linear RGB (H, W, 3)."""
    return canvas.rgb + background * (1 - canvas.cover[..., None])


def shadowed(background: Array, canvas: Canvas, dx: float, dy: float, blur: float, strength: float) -> Array:
    """The background with the canvas's soft shadow on it; lengths in units of the picture."""
    unit = canvas.unit
    moved = cv2.warpAffine(
        canvas.cover,
        np.array([[1, 0, dx * unit], [0, 1, dy * unit]], np.float32),
        (canvas.width, canvas.height),
        borderMode=cv2.BORDER_REPLICATE,
    )
    soft = cv2.GaussianBlur(moved, (0, 0), max(blur * unit, 0.3))
    return background * (1 - strength * soft[..., None] * np.array([1.0, 0.96, 0.88], np.float32))


class Arms:
    """A figure that waves its arms to the music in front of a brick wall."""

    light = Light(colour("#fff0d8") * 1.55, colour("#8fb0c8") * 0.45, colour("#a5704a") * 0.28, colour("#ffd9a0") * 0.9)

    def __init__(self, size: Size, seconds: float, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.size, self.seed = size, seed
        self.looks = replace(cast(rng), long_hair=bool(rng.random() < 0.5))
        palette = (("#d8972b", "#f1e2c0"), ("#c8512f", "#f0dcc4"), ("#e0b23c", "#37586a"))
        self.shirt, self.stripe = (colour(c) for c in palette[rng.integers(len(palette))])
        self.phase = rng.uniform(-0.4, 0.4)
        self.wall = self._wall(rng)

    def _wall(self, rng: np.random.Generator) -> Array:
        canvas = Canvas(self.size, self.light)
        x, y = canvas.grid()
        high, wide, joint = 0.066, 0.168, 0.0085
        row = np.floor(y / high + 100).astype(int)
        slide = x / wide + 0.5 * (row % 2) + 100 + 0.03 * np.sin(row * 12.9)
        column = np.floor(slide).astype(int)
        tones = rng.uniform(-1, 1, (211, 223)).astype(np.float32)
        tone = tones[row % 211, column % 223]
        hue = tones[(row * 7 + 3) % 211, (column * 5 + 1) % 223]
        rough = noise(rng, self.size, (60, 34), 4)
        stain = noise(rng, self.size, (4, 3), 4)
        # Distance to the nearest joint, with edges that are not quite straight, and the slope that light sees there.
        wobble = 0.0035 * noise(rng, self.size, (30, 17), 3)
        u = (0.5 - np.abs(slide - np.floor(slide) - 0.5)) * wide + wobble
        v = (0.5 - np.abs(y / high + 100 - row - 0.5)) * high + wobble
        depth = np.minimum(u, v)
        pixel = 1 / canvas.unit
        brick = np.clip((depth - joint / 2) / max(pixel, 0.003) + 0.5, 0, 1)
        height = 0.010 * ramp(depth, 0, joint * 1.3) + 0.0016 * rough
        relief = cv2.GaussianBlur(height.astype(np.float32), (0, 0), max(0.5, 0.0018 * canvas.unit))
        down, right = np.gradient(relief, pixel)
        fade = min(1.0, canvas.unit / 240)  # small pictures cannot show relief, only alias it
        nx, ny = -right * 0.8 * fade, -down * 0.8 * fade
        nz = 1 / np.sqrt(1 + nx * nx + ny * ny)
        base = mix(colour("#3f5f68"), colour("#5b7a7c"), (0.5 + 0.5 * tone)[..., None])
        base = mix(base, colour("#6e5f58"), (0.35 * np.clip(hue, 0, 1))[..., None])
        mortar = colour("#6f8080") * 0.72
        albedo = mix(mortar, base, brick[..., None]) * (1 + 0.10 * rough + 0.16 * stain)[..., None]
        lit = self.light.shade(albedo, (nx * nz, ny * nz, nz), 0.0, CLOTH)
        # A pool of lamplight from the upper left.
        pool = np.exp(-(((x + 0.28) / 0.75) ** 2) - ((y + 0.22) / 0.62) ** 2)
        return (
            lit * (0.24 + 0.95 * pool)[..., None] * mix(np.array([0.8, 0.95, 1.1]), np.array([1.1, 1.0, 0.86]), pool[..., None])
        ).astype(np.float32)

    def paint(self, t: float) -> Array:
        """The picture at t, uint8 (H, W, 3)."""
        canvas = Canvas(self.size, self.light)
        beat = 2 * math.pi * t / BEAT_S
        bob = 0.008 * math.cos(beat)
        sway = 0.022 * math.sin(beat / 4)
        body = canvas.at(sway, 0.055 + bob, 0.035 * math.sin(beat / 4))
        yaw, pitch, tilt = turn(t, self.phase)
        mood = Mood(
            yaw=0.7 * yaw,
            pitch=0.4 * pitch,
            gaze=(0.5 * yaw, 0.2 * pitch),
            lids=blink(t, self.seed + 5),
            brows=0.3 + 0.4 * math.sin(beat / 8),
            mouth=0.30 + 0.25 * math.sin(beat / 8),
            wide=0.95,
        )
        head = body.at(0.012 * yaw, -0.290, tilt + 0.05 * math.sin(beat / 4), 0.098)
        jeans = colour("#27384f")

        paint_back_hair(head, self.looks, mood)
        left, right = (limb((side * 0.062, 0.29), (side * 0.080 - sway, 0.75), 0.082, 0.070) for side in (-1, 1))
        hips = limb((-0.045, 0.262), (0.045, 0.262), 0.086, 0.086)
        body.paint(left.melt(right, 0.012).melt(hips, 0.05), self._denim(jeans), bevel=0.075)
        torso = limb((0, -0.06), (0, 0.045), 0.118, 0.108).melt(limb((-0.105, -0.115), (0.105, -0.115), 0.042, 0.042), 0.05)
        torso = torso.melt(limb((-0.035, 0.20), (0.035, 0.20), 0.085, 0.085), 0.06)
        shirt_end = between(lambda x: x * 0 - 9, lambda x: 0.262 - 0.35 * x * x, (-1, -1, 1, 1))
        body.paint(torso, self._stripes(1.0), bevel=0.10, clip=shirt_end, shadow=(0.006, 0.02, 0.02, 0.5))
        neck(head, self.looks, mood, 1.75)
        body.paint(limb((-0.035, -0.142), (0.035, -0.142), 0.022, 0.022), self.shirt * 0.55, opacity=0.0)
        collar = between(lambda x: -0.160 + 0.0 * x, lambda x: -0.118 - 9 * x * x, (-0.075, -0.2, 0.075, -0.1))
        body.paint(collar, self.looks.skin * 0.80, clip=torso, soft=0.004)
        paint_head(head, self.looks, mood)
        for side in (-1, 1):
            self._arm(body, side, t)
        wall = shadowed(self.wall, canvas, 0.085, 0.05, 0.030, 0.66)
        return film(over(canvas, wall))

    def _denim(self, base: Array) -> Callable[[Array, Array], Array]:
        def albedo(x: Array, y: Array) -> Array:
            weave = 0.05 * np.sin((x + y) * 520) + 0.06 * np.sin(x * 60 + 2 * np.sin(y * 23))
            return base * (1 + weave)[..., None]

        return albedo

    def _stripes(self, bend: float) -> Callable[[Array, Array], Array]:
        def albedo(x: Array, y: Array) -> Array:
            wave = np.sin((y + bend * 1.1 * x * x) * 2 * math.pi / 0.052)
            return mix(np.broadcast_to(self.shirt, (*x.shape, 3)), self.stripe, ramp(wave, 0.45, 0.75))

        return albedo

    def _arm(self, body: View, side: int, t: float) -> None:
        """Shoulder, elbow, wrist and fingers: angles from hanging down, outwards and up."""
        beat = 2 * math.pi * t / BEAT_S
        swap = 0.5 + 0.5 * math.tanh(3 * math.sin(beat / 16 + self.phase))  # both together, then in turn
        lag = (0.0 if side < 0 else math.pi * swap) + self.phase
        lift = math.radians(88 + 40 * math.sin(beat / 4 + lag) + 8 * math.sin(beat / 2))
        bend = math.radians(46 + 34 * math.sin(beat / 2 + lag + 0.8))
        wrist = math.radians(14 * math.sin(beat / 2 + lag - 0.6))
        shoulder = (side * 0.128, -0.108)
        upper, lower = 0.150, 0.135
        elbow = (shoulder[0] + side * upper * math.sin(lift), shoulder[1] + upper * math.cos(lift))
        angle = lift + bend
        hand = (elbow[0] + side * lower * math.sin(angle), elbow[1] + lower * math.cos(angle))
        skin = self.looks.skin
        drop = (0.010, 0.022, 0.016, 0.42)
        body.paint(limb(elbow, hand, 0.031, 0.022), skin, bevel=0.03, wrap=SKIN, shadow=drop)
        body.paint(limb(shoulder, elbow, 0.042, 0.032), skin, bevel=0.034, wrap=SKIN)
        cuff = (shoulder[0] + (elbow[0] - shoulder[0]) * 0.62, shoulder[1] + (elbow[1] - shoulder[1]) * 0.62)
        sleeve = body.at(*_local(shoulder), math.atan2(elbow[1] - shoulder[1], elbow[0] - shoulder[0]) - math.pi / 2)
        reach = math.hypot(cuff[0] - shoulder[0], cuff[1] - shoulder[1])
        cut = between(lambda x: x * 0 - 9, lambda x: reach + 2.5 * x * x, (-1, -1, 1, 1))
        sleeve.paint(
            limb((0, -0.01), (0, reach + 0.03), 0.049, 0.047),
            self._stripes(-2.0),
            bevel=0.047,
            clip=cut,
            shadow=(0.0, 0.008, 0.01, 0.4),
        )
        palm = body.at(*hand, -side * (angle + wrist))  # local y runs towards the fingertips
        for finger in range(4):
            spread = (finger - 1.5) * 0.24 + 0.05 * math.sin(beat / 2 + finger)
            root = ((finger - 1.5) * 0.0115, 0.034)
            size = (0.034, 0.040, 0.038, 0.030)[finger if side > 0 else 3 - finger]
            tip = (root[0] + size * math.sin(spread), root[1] + size * math.cos(spread))
            palm.paint(limb(root, tip, 0.0075, 0.0062), skin, bevel=0.008, wrap=SKIN)
        palm.paint(limb((-side * 0.012, 0.012), (-side * 0.040, 0.036), 0.0095, 0.0075), skin, bevel=0.009, wrap=SKIN)
        palm.paint(ellipse(0, 0.020, 0.0245, 0.029, 2.6), skin, bevel=0.02, wrap=SKIN)


def _local(point: tuple[float, float]) -> tuple[float, float]:
    return point


class Face:
    """A talking head before a window with evening lights, out of focus."""

    light = Light(colour("#ffedd2") * 1.5, colour("#9fb4cc") * 0.42, colour("#b0734e") * 0.30, colour("#ffc890") * 1.1)

    def __init__(self, size: Size, seconds: float, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        self.size, self.seed = size, seed
        self.looks = cast(rng)
        self.jumper = colour(rng.choice(["#2f6f73", "#8a3b3a", "#3c5a86", "#5c6b3a"]))
        self.speech = speech(seconds, seed)
        self.phase = rng.uniform(0, 6)
        self.room = self._room(rng)

    def _room(self, rng: np.random.Generator) -> Array:
        canvas = Canvas(self.size, self.light)
        x, y = canvas.grid()
        cloud = noise(rng, self.size, (3, 2), 3)
        night = mix(colour("#1b2c40"), colour("#5a4a5c"), ramp(y + 0.10 * cloud, -0.5, 0.35))
        night = mix(night, colour("#c47a4e"), 0.75 * np.exp(-(((y - 0.20) / 0.16) ** 2)) * (1 + 0.3 * cloud))
        canvas.rgb[:] = night
        canvas.cover[:] = 1
        view = canvas.at()
        for _ in range(46):  # lights out of focus: discs with a brighter rim
            bx, by = rng.uniform(-1.0, 1.0), rng.normal(0.14, 0.13)
            r = rng.uniform(0.018, 0.05)
            warm = mix(colour(rng.choice(["#ffb45e", "#ff8a4a", "#ffe0a8", "#8fd0e8"])), np.ones(3), 0.1)
            strength = rng.uniform(0.15, 0.7)
            view.paint(ellipse(bx, by, r, r), warm * 1.5, glow=True, opacity=0.30 * strength, soft=0.012)
            view.paint(ellipse(bx, by, r * 0.86, r * 0.86), warm * 1.1, glow=True, opacity=0.25 * strength, soft=0.02)
        for bar in (-0.80, 0.66):  # the window's frame and the curtain, out of focus too
            view.paint(limb((bar, -0.9), (bar, 0.9), 0.024, 0.024), colour("#4a3527"), bevel=0.02, soft=0.03)
        folds = colour("#7d4a3c") * (0.55 + 0.30 * np.sin(x * 42 + 2.2 * np.sin(x * 9) + 0.3 * y))[..., None]
        curtain = ramp(np.abs(x + 0.03 * y), 0.66, 0.74)[..., None]
        canvas.rgb[:] = mix(canvas.rgb, folds * (0.9 + (0.35 - 0.9) * ramp(y, -0.4, 0.5))[..., None], curtain)
        blurred = cv2.GaussianBlur(canvas.rgb, (0, 0), max(0.3, 0.010 * canvas.unit))
        return blurred * (1 + 0.03 * noise(rng, self.size, (90, 50), 3))[..., None]

    def mood(self, t: float) -> Mood:
        """The expression at t: the mouth follows the voice."""
        opening, width = self.speech.mouth(t)
        yaw, pitch, _ = turn(t, self.phase)
        return Mood(
            yaw=0.75 * yaw,
            pitch=0.5 * pitch + 0.25 * (opening - 0.4),
            gaze=(-0.5 * yaw + 0.25 * math.sin(0.8 * t + self.phase), -0.2 * pitch),
            lids=blink(t, self.seed + 6),
            brows=0.35 * math.sin(1.1 * t + self.phase) + 0.45 * (opening - 0.4),
            mouth=opening,
            wide=0.25 + 0.6 * width if opening > 0.02 else 0.55,
        )

    def paint(self, t: float) -> Array:
        """The picture at t, uint8 (H, W, 3)."""
        canvas = Canvas(self.size, self.light)
        mood = self.mood(t)
        yaw, _, tilt = turn(t, self.phase)
        x = 0.030 * math.sin(0.6 * t + self.phase) + 0.012 * yaw
        head = canvas.at(x, -0.055 + 0.010 * mood.pitch, tilt, 0.232)
        body = canvas.at(0.55 * x, 0.006 * math.sin(1.4 * t), 0.3 * tilt)
        paint_back_hair(head, self.looks, mood)
        neck(head, self.looks, mood, 1.6)
        self._body(body)
        paint_head(head, self.looks, mood)
        room = shadowed(self.room, canvas, 0.06, 0.02, 0.06, 0.30)
        return film(over(canvas, room))

    def _body(self, body: View) -> None:
        def knit(x: Array, y: Array) -> Array:
            column = x * 46 + 0.5 * np.sin(y * 3)
            rows = np.abs(np.mod(y * 40 + np.abs(np.mod(column, 1) - 0.5) * 1.2, 1) - 0.5) * 2
            purl = ramp(np.abs(np.mod(column, 1) - 0.5), 0.5, 0.30)
            return self.jumper * (0.80 + 0.22 * purl + 0.16 * rows)[..., None]

        def rib(x: Array, y: Array) -> Array:
            return self.jumper * (0.86 + 0.22 * np.sin(np.arctan2(x, 1.2 - y) * 150))[..., None]

        shoulders = limb((-0.265, 0.475), (0.265, 0.475), 0.135, 0.135).melt(ellipse(0, 0.42, 0.20, 0.17), 0.12)
        chest = limb((0, 0.60), (0, 0.95), 0.36, 0.42)
        shirt = shoulders.melt(chest, 0.08)
        low = between(lambda x: 0.272 + 0.075 * np.clip(1 - (x / 0.14) ** 2, -4, 1), lambda x: x * 0 + 9, (-2, -1, 2, 2))
        shirt = replace(shirt & low, bounds=shirt.bounds)
        body.paint(shirt, knit, bevel=0.14)
        collar = between(
            lambda x: 0.258 + 0.075 * np.clip(1 - (x / 0.14) ** 2, -1, 1),
            lambda x: 0.312 + 0.075 * np.clip(1 - (x / 0.14) ** 2, -1, 1),
            (-0.128, 0.2, 0.128, 0.45),
        )
        body.paint(collar, rib, bevel=0.022, shadow=(0.0, 0.012, 0.012, 0.4))


class Pan:
    """A slow pan across a painted valley: mountains behind a lake in the morning, firs and a meadow in front."""

    def __init__(self, size: Size, seconds: float, seed: int) -> None:
        rng = np.random.default_rng([seed, 3])
        self.size, self.seconds = size, max(seconds, 1e-3)
        self.unit = min(size[1], size[0] / 1.4)
        self.travel = 0.11 * seconds  # units that the nearest layer moves; the others go slower
        self.sky = self._sky(rng)
        self.clouds = self._clouds(rng)
        far = (("#8fa9c4", 0.30, -0.02, 0.15), ("#6f90ac", 0.24, 0.035, 0.24), ("#4f7686", 0.16, 0.085, 0.36))
        self.ranges = [(speed, self._range(rng, colour(code), tall, foot, speed)) for code, tall, foot, speed in far]
        self.shore = self._shore(rng, 0.52)
        self.meadow = self._meadow(rng, 1.0)
        self.ripple = noise(rng, size, (14, 60), 2)
        self.ripple2 = noise(rng, size, (22, 90), 2)

    horizon = 0.155
    """Where the water meets the far shore, in units below the centre."""

    def _wide(self, speed: float) -> Size:
        return self.size[0] + math.ceil(self.travel * speed * self.unit) + 2, self.size[1]

    def _grid(self, wide: Size) -> tuple[Array, Array]:
        x = (np.arange(wide[0], dtype=np.float32) + 0.5 - self.size[0] / 2) / self.unit
        y = (np.arange(wide[1], dtype=np.float32) + 0.5 - self.size[1] / 2) / self.unit
        return np.meshgrid(x, y)

    def _noise(self, rng: np.random.Generator, wide: Size, across: float, down: float, octaves: int) -> Array:
        """Noise by blobs per unit length, so that wider layers are longer, not stretched."""
        return noise(rng, wide, (across * wide[0] / self.unit, down * wide[1] / self.unit), octaves)

    def _brush(self, rng: np.random.Generator, wide: Size, strength: float) -> Array:
        """The strokes of a flat brush: a factor (H, W, 1)."""
        return (1 + strength * self._noise(rng, wide, 16, 44, 3))[..., None]

    def _sky(self, rng: np.random.Generator) -> Array:
        x, y = self._grid(self.size)
        sky = mix(colour("#3f78b4"), colour("#a9cbe0"), ramp(y, -0.55, -0.08))
        sky = mix(sky, colour("#ffd9a6"), ramp(y, -0.25, 0.12))
        sun = np.hypot(x - 0.42, y + 0.085)
        sky = sky + colour("#ffca84") * (0.9 * np.exp(-sun / 0.20) + 3.0 * ramp(sun, 0.040, 0.032))[..., None]
        return (sky * self._brush(rng, self.size, 0.03)).astype(np.float32)

    def _clouds(self, rng: np.random.Generator) -> Array:
        wide = self._wide(0.08)
        _x, y = self._grid(wide)
        puff = self._noise(rng, wide, 1.6, 4.2, 6)
        mask = ramp(puff + 0.35 * np.cos((y + 0.27) * 5.5) - 0.12, 0.10, 0.55) * ramp(y, 0.02, -0.15)
        up = cv2.GaussianBlur(puff, (0, 0), max(0.5, self.unit * 0.008))
        lit = np.clip(0.55 + 2.2 * (up - np.roll(up, max(1, int(-self.unit * 0.02)), axis=0)), 0, 1)
        tint = mix(colour("#b58f9a") * 0.9, colour("#fff1dc") * 1.25, lit[..., None])
        return _layer(tint * self._brush(rng, wide, 0.05), 0.85 * mask)

    def _range(self, rng: np.random.Generator, tint: Array, tall: float, foot: float, speed: float) -> Array:
        wide = self._wide(speed)
        _x, y = self._grid(wide)
        line = noise(rng, (wide[0], 8), (2.2 * wide[0] / self.unit, 0.01), 7)[4]
        crest = foot - tall * (0.42 + 0.55 * (1 - np.abs(line)) ** 2 * 1.1 - 0.35)
        depth = y - crest[None, :]
        # Faces of rock: slanted noise, lit from the sun's side; snow on the highest; mist at the foot.
        rock = self._noise(rng, wide, 7, 5, 6)
        slope = np.gradient(
            cv2.GaussianBlur(rock + 3 * crest[None, :], (0, 0), max(0.5, self.unit * 0.006)), 1 / self.unit, axis=1
        )
        face = np.clip(0.5 - 0.055 * slope, 0, 1)
        tone = mix(tint * 0.52, mix(tint, colour("#ffd9b0"), 0.42), face[..., None])
        snow = ramp(depth + 0.035 * rock, 0.085, 0.02) * ramp(crest, foot - 0.52 * tall, foot - 0.66 * tall)[None, :]
        tone = mix(tone, mix(colour("#8ea6c6"), colour("#fff3e2") * 1.1, face[..., None]), (0.85 * snow)[..., None])
        mist = ramp(depth, 0.0, tall * 1.05) * 0.55
        tone = mix(tone, colour("#e8cfb4"), mist[..., None])
        return _layer(tone * self._brush(rng, wide, 0.06), np.clip(depth * self.unit + 0.5, 0, 1))

    def _shore(self, rng: np.random.Generator, speed: float) -> Array:
        """The far shore: low hills with a wood, reflected in the lake."""
        wide = self._wide(speed)
        x, y = self._grid(wide)
        hill = 0.055 + 0.05 * self._noise(rng, (wide[0], 1), 1.1, 0.01, 2)[0]
        teeth = np.abs(np.mod(x[0] * 55 + 2 * np.sin(x[0] * 17), 1) - 0.5)
        crowns = 0.018 * (1 - 2 * teeth) + 0.014 * self._noise(rng, (wide[0], 1), 24, 0.01, 2)[0]
        crest = self.horizon - np.clip(hill, 0.012, None) - np.clip(crowns, 0, None)
        depth = y - crest[None, :]
        leaf = self._noise(rng, wide, 34, 46, 3)
        tone = mix(colour("#1d3b36"), colour("#5d7a3e"), np.clip(0.45 + 0.5 * leaf - 4 * (depth - 0.02), 0, 1)[..., None])
        tone = mix(tone, colour("#d9c3a6"), (0.26 * ramp(depth, 0.0, 0.10))[..., None])
        inside = np.clip(depth * self.unit + 0.5, 0, 1) * np.clip((self.horizon - y) * self.unit + 0.5, 0, 1)
        return _layer(tone * self._brush(rng, wide, 0.10), inside)

    def _meadow(self, rng: np.random.Generator, speed: float) -> Array:
        """The near shore: grass, flowers and a few firs, dark against the water."""
        wide = self._wide(speed)
        _x, y = self._grid(wide)
        bank = 0.335 + 0.045 * self._noise(rng, (wide[0], 1), 0.9, 0.01, 3)[0]
        blades = 0.012 * np.abs(self._noise(rng, (wide[0], 1), 70, 0.01, 2)[0])
        depth = y - (bank - blades)[None, :]
        grass = self._noise(rng, wide, 60, 14, 4)
        patch = self._noise(rng, wide, 2.5, 6, 3)
        tone = mix(colour("#2c4a22"), colour("#9aa544"), np.clip(0.42 + 0.42 * grass + 0.3 * patch, 0, 1)[..., None])
        tone = tone * (1.15 - 1.6 * np.clip(depth, 0, 0.3))[..., None]
        cover = np.clip(depth * self.unit + 0.5, 0, 1)
        canvas = Canvas(
            wide, Light(colour("#ffe6bd") * 1.3, colour("#9fbad0") * 0.5, colour("#5a6a3a") * 0.4, colour("#ffd8a0"))
        )
        shift = (wide[0] - self.size[0]) / 2 / self.unit  # Canvas has its origin in the middle, the layer in the first view
        canvas.unit = self.unit
        canvas.rgb[:] = tone * cover[..., None]
        canvas.cover[:] = cover
        span = wide[0] / self.unit
        for _ in range(round(70 * span)):  # flowers
            fx = rng.uniform(0, span) - span / 2
            fy = rng.uniform(0.36, 0.52)
            petal = colour(rng.choice(["#f2e6c8", "#e8a33a", "#c85a6a", "#e9d25a"]))
            r = 0.0035 + 0.006 * (fy - 0.34) / 0.16 * rng.uniform(0.7, 1.3)
            view = canvas.at(fx, fy)
            view.paint(limb((0, 0), (r * rng.uniform(-1, 1), 5 * r), r * 0.18, r * 0.15), colour("#3d5a28"))
            view.paint(ellipse(0, 0, r * 1.15, r * 0.8), petal, bevel=r)
        places = []
        at = -span / 2 + rng.uniform(0.05, 0.2)
        while at < span / 2:
            places.append((at, rng.uniform(0.26, 0.46), rng.uniform(0.33, 0.40)))
            at += rng.uniform(0.10, 0.16) if rng.random() < 0.45 else rng.uniform(0.45, 0.75)
        for fx, tall, foot in sorted(places, key=lambda p: p[2]):
            self._fir(rng, canvas.at(fx, foot), tall)
        del shift
        return np.dstack([canvas.rgb, canvas.cover])

    @staticmethod
    def _fir(rng: np.random.Generator, view: View, tall: float) -> None:
        """A fir whose foot is the view's origin."""
        view.paint(ellipse(0.02, 0.004, 0.28 * tall, 0.035 * tall), colour("#16240f"), soft=0.03, opacity=0.6)
        view.paint(limb((0, 0.01), (0, -0.3 * tall), 0.022 * tall, 0.014 * tall), colour("#4a3020"), bevel=0.02 * tall)
        tiers = 9
        for tier in range(tiers):
            share = tier / (tiers - 1)
            y = -tall * (0.10 + 0.86 * share)
            half = tall * (0.235 * (1 - share) ** 0.85 + 0.012)
            tint = mix(colour("#16352a"), colour("#3f6a3c"), rng.uniform(0.1, 0.6) * (0.5 + 0.5 * share))
            for side in (-1, 1):
                for twig in range(3):
                    reach = half * (1 - 0.28 * twig) * rng.uniform(0.88, 1.08)
                    tip = (side * reach, y + half * (0.42 - 0.16 * twig))
                    light = 1.25 if side > 0 else 0.8
                    view.paint(limb((0, y - half * 0.35), tip, half * 0.30, half * 0.05), tint * light, bevel=half * 0.3)
        view.paint(limb((0, -tall * 0.93), (0, -tall), tall * 0.012, tall * 0.003), colour("#3f6a3c"))

    def paint(self, t: float) -> Array:
        """The picture at t, uint8 (H, W, 3)."""
        progress = np.clip(t / self.seconds, 0, 1)
        eased = 0.7 * progress + 0.3 * float(ramp(progress, 0, 1))  # starts and ends a little slower
        moved = self.travel * eased * self.unit
        picture = self.sky.copy()
        self._blend(picture, self.clouds, moved * 0.08)
        for speed, layer in self.ranges:
            self._blend(picture, layer, moved * speed)
        self._blend(picture, self.shore, moved * 0.52)
        self._lake(picture, t, moved)
        self._blend(picture, self.meadow, moved)
        return film(picture, 0.92)

    @staticmethod
    def _blend(picture: Array, layer: Array, moved: float) -> None:
        """Put the layer, slid left by `moved` pixels (a fraction too), over the picture."""
        _height, width = picture.shape[:2]
        whole = min(int(moved), layer.shape[1] - width - 1)
        part = np.float32(moved - whole)
        window = layer[:, whole : whole + width] * (1 - part) + layer[:, whole + 1 : whole + 1 + width] * part
        picture *= 1 - window[..., 3:]
        picture += window[..., :3]

    def _lake(self, picture: Array, t: float, moved: float) -> None:
        """Mirror what stands above the water into it, shaken by two trains of ripples."""
        height, width = picture.shape[:2]
        first = int(self.horizon * self.unit + height / 2)
        rows = height - first
        if rows < 2:
            return
        near = (np.arange(rows, dtype=np.float32) / self.unit)[:, None]  # distance below the waterline, units
        slide = np.arange(width, dtype=np.float32)
        wave = _rolled(self.ripple, moved * 0.7 + 9 * t, 0.10 * t * self.unit)[:rows]
        wave = wave + 0.6 * _rolled(self.ripple2, moved * 0.8 - 14 * t, -0.06 * t * self.unit)[:rows]
        shake = wave * (0.004 + 0.06 * near) * self.unit
        source_y = first - 1 - np.arange(rows, dtype=np.float32)[:, None] * 1.15 - np.abs(shake) * 0.9
        source_x = slide[None, :] + 0.5 * shake
        mirror = cv2.remap(
            picture,
            source_x.astype(np.float32),
            np.maximum(source_y, 0).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        depth = ramp(near, 0.0, 0.24)[..., None]
        water = mix(mirror * np.array([0.80, 0.88, 0.92], np.float32), colour("#1f4a5c") * 0.8, 0.12 + 0.38 * depth)
        glitter = (
            ramp(wave, 0.55, 1.0)[..., None] * np.exp(-((((slide - width / 2) / self.unit - 0.42) / 0.16) ** 2))[None, :, None]
        )
        water = water + colour("#ffd9a0") * (
            0.9 * glitter * ramp(near, 0.0, 0.03)[..., None] + 0.05 * np.clip(wave, 0, 1)[..., None]
        )
        water[:2] = water[:2] * 0.6 + colour("#e8d6ba") * 0.25  # the line of light at the far shore
        picture[first:] = water


def _layer(rgb: Array, cover: Array) -> Array:
    """Premultiplied RGBA, float32 (H, W, 4)."""
    return np.dstack([rgb * cover[..., None], cover]).astype(np.float32)


def _rolled(field: Array, dx: float, dy: float) -> Array:
    """The field moved by whole and broken pixels, mirrored at its edges."""
    height, width = field.shape
    x = (np.arange(width, dtype=np.float32) + np.float32(dx % (2 * width)))[None, :].repeat(height, 0)
    y = (np.arange(height, dtype=np.float32) + np.float32(dy % (2 * height)))[:, None].repeat(width, 1)
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
