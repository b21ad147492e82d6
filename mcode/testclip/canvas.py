"""A small painter: shapes given by their distance, lit as if they were round, in linear light; and the film look at the end.

Coordinates: origin at the picture's centre, x to the right, y down, one unit = the picture's height (less if it is narrow).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

Array = np.ndarray
Albedo = Array | Callable[[Array, Array], Array]
"""A colour, linear RGB (3,), or a texture: local x and y (h, w) to colours (h, w, 3)."""


def colour(hex_code: str) -> Array:
    """Linear RGB (3,), float32, from an sRGB code such as "#e8b98f"."""
    srgb = np.array([int(hex_code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def mix(a: Array, b: Array, share: Array | float) -> Array:
    """a where share is 0, b where it is 1; a share (h, w) is for colours and gives (h, w, 3)."""
    if isinstance(share, np.ndarray) and share.ndim == 2:
        share = share[..., None]
    return a + (b - a) * share


def ramp(x: Array | float, start: float, end: float) -> Array:
    """0 before start, 1 after end, smooth in between (smoothstep; start may be the larger)."""
    t = np.clip((x - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[float, float], octaves: int = 4) -> Array:
    """Smooth noise (height, width) with mean about 0 and range about -1..1, for size = (width, height).

    The picture holds `cells` (across, down) of the largest blobs whatever its size, so a scene looks the same at all sizes.
    """
    width, height = size
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        across, down = (max(1, math.ceil(c * 2**octave)) for c in cells)
        grid = rng.uniform(-1, 1, (down + 3, across + 3)).astype(np.float32)
        if max(across / width, down / height) > 0.5:
            continue  # finer than the picture can show; drawn above all the same, so that later draws do not change
        x = (np.arange(width, dtype=np.float32) + 0.5) / width * (cells[0] * 2**octave) + 0.5
        y = (np.arange(height, dtype=np.float32) + 0.5) / height * (cells[1] * 2**octave) + 0.5
        map_x, map_y = np.meshgrid(x, y)
        total += cv2.remap(grid, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT) / 2**octave
    return total / 1.2


@dataclass(frozen=True)
class Shape:
    """distance(x, y) is negative inside, in local units; bounds (x0, y0, x1, y1) hold all that is inside."""

    bounds: tuple[float, float, float, float]
    distance: Callable[[Array, Array], Array]

    def __or__(self, other: Shape) -> Shape:
        a, b = self.bounds, other.bounds
        bounds = (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
        return Shape(bounds, lambda x, y: np.minimum(self.distance(x, y), other.distance(x, y)))

    def __and__(self, other: Shape) -> Shape:
        a, b = self.bounds, other.bounds
        bounds = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
        return Shape(bounds, lambda x, y: np.maximum(self.distance(x, y), other.distance(x, y)))

    def melt(self, other: Shape, width: float) -> Shape:
        """Union with a fillet of about `width` where the two meet."""

        def distance(x: Array, y: Array) -> Array:
            a, b = self.distance(x, y), other.distance(x, y)
            h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
            return b + (a - b) * h - width * h * (1 - h)

        return replace(self | other, distance=distance)


def ellipse(x: float, y: float, rx: float, ry: float, power: float = 2.0) -> Shape:
    """power above 2 is boxier (a superellipse)."""

    def distance(px: Array, py: Array) -> Array:
        u, v = np.abs(px - x) / rx, np.abs(py - y) / ry
        r = (u**power + v**power + 1e-9) ** (1 / power)
        slope = np.hypot(u ** (power - 1) / rx, v ** (power - 1) / ry) / r ** (power - 1) + 1e-9
        return (r - 1) / slope

    return Shape((x - rx, y - ry, x + rx, y + ry), distance)


def limb(a: tuple[float, float], b: tuple[float, float], ra: float, rb: float) -> Shape:
    """A tapered capsule from a (radius ra) to b (radius rb)."""
    bx, by = b[0] - a[0], b[1] - a[1]
    length2 = bx * bx + by * by + 1e-12

    def distance(x: Array, y: Array) -> Array:
        t = np.clip(((x - a[0]) * bx + (y - a[1]) * by) / length2, 0, 1)
        return np.hypot(x - a[0] - t * bx, y - a[1] - t * by) - (ra + (rb - ra) * t)

    r = max(ra, rb)
    return Shape((min(a[0], b[0]) - r, min(a[1], b[1]) - r, max(a[0], b[0]) + r, max(a[1], b[1]) + r), distance)


def between(
    top: Callable[[Array], Array], bottom: Callable[[Array], Array], bounds: tuple[float, float, float, float]
) -> Shape:
    """What lies below the curve y = top(x) and above y = bottom(x), inside bounds."""

    def distance(x: Array, y: Array) -> Array:
        row = x[:1]
        step = 1e-3
        result = np.maximum(bounds[0] - x, x - bounds[2])
        for curve, sign in ((top, 1.0), (bottom, -1.0)):
            slope = (curve(row + step) - curve(row - step)) / (2 * step)
            result = np.maximum(result, sign * (curve(row) - y) / np.sqrt(1 + slope * slope))
        return result

    return Shape(bounds, distance)


@dataclass(frozen=True)
class Light:
    """Colours of the light, linear RGB: from the key lamp, from above, from below, and from behind at the edge."""

    key: Array
    sky: Array
    bounce: Array
    rim: Array
    direction: tuple[float, float, float] = (-0.48, -0.58, 0.66)

    def shade(self, albedo: Array, normal: tuple[Array, Array, Array], gloss: float, wrap: Array) -> Array:
        """albedo (3,) or (h, w, 3) and normals (h, w) each; wrap: per channel, how far light creeps round the edge."""
        nx, ny, nz = normal
        facing = nx * self.direction[0] + ny * self.direction[1] + nz * self.direction[2]
        diffuse = np.clip((facing[..., None] + wrap) / (1 + wrap), 0, None)
        ambient = mix(self.bounce, self.sky, 0.5 - 0.5 * ny)
        edge = np.clip(nx * 0.8 - ny * 0.35, 0, 1) * np.clip(1 - nz, 0, 1) ** 2
        lit = albedo * (diffuse * self.key + ambient) + edge[..., None] * self.rim * (0.25 + albedo)
        if gloss:
            half = (self.direction[0], self.direction[1], self.direction[2] + 1)
            norm = math.sqrt(sum(c * c for c in half))
            shine = np.clip((nx * half[0] + ny * half[1] + nz * half[2]) / norm, 0, 1)
            lit = lit + gloss * (shine**40 + 0.2 * shine**8)[..., None] * self.key
        return lit


CLOTH = np.array([0.25, 0.25, 0.25], np.float32)
SKIN = np.array([0.62, 0.40, 0.32], np.float32)


class Canvas:
    """Linear RGB, premultiplied, float32 (H, W, 3), and its coverage (H, W)."""

    def __init__(self, size: tuple[int, int], light: Light) -> None:
        self.width, self.height = size
        self.unit = min(self.height, self.width / 1.4)
        self.light = light
        self.rgb = np.zeros((self.height, self.width, 3), np.float32)
        self.cover = np.zeros((self.height, self.width), np.float32)

    def grid(self) -> tuple[Array, Array]:
        """x and y of all pixels' centres, (H, W) each."""
        return self._window(0, 0, self.width, self.height)

    def _window(self, x0: int, y0: int, x1: int, y1: int) -> tuple[Array, Array]:
        x = (np.arange(x0, x1, dtype=np.float32) + 0.5 - self.width / 2) / self.unit
        y = (np.arange(y0, y1, dtype=np.float32) + 0.5 - self.height / 2) / self.unit
        return np.meshgrid(x, y)

    def at(self, x: float = 0, y: float = 0, angle: float = 0, scale: float = 1) -> View:
        """Local coordinates: scaled, turned clockwise by angle (radians), then moved to (x, y)."""
        return View(self, x, y, angle, scale)


@dataclass(frozen=True)
class View:
    """Where shapes in local coordinates land on a canvas."""

    canvas: Canvas
    x: float
    y: float
    angle: float
    scale: float

    def at(self, x: float, y: float, angle: float = 0, scale: float = 1) -> View:
        """A view inside this one."""
        px, py = self.place(x, y)
        return View(self.canvas, px, py, self.angle + angle, self.scale * scale)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Canvas coordinates of a local point."""
        c, s = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        return self.x + c * x - s * y, self.y + s * x + c * y

    def paint(
        self,
        shape: Shape,
        albedo: Albedo,
        *,
        bevel: float = 0.0,
        gloss: float = 0.0,
        wrap: Array = CLOTH,
        clip: Shape | None = None,
        opacity: float = 1.0,
        soft: float = 0.0,
        shadow: tuple[float, float, float, float] | None = None,
        glow: bool = False,
    ) -> None:
        """Paint one shape over what is there.

        bevel: how far from the edge the surface curves up (0: flat, facing the viewer). soft: width of a blurred edge.
        shadow: (dx, dy, blur, strength) of the shadow on what is already painted. glow: the colour is light, not lit.
        All lengths in local units.
        """
        canvas, scale = self.canvas, self.scale
        reach = soft + (max(abs(shadow[0]), abs(shadow[1])) + 2 * shadow[2] if shadow else 0)
        x0, y0, x1, y1 = shape.bounds
        corners = [self.place(x, y) for x in (x0 - reach, x1 + reach) for y in (y0 - reach, y1 + reach)]
        left, right = (f(c[0] for c in corners) * canvas.unit + canvas.width / 2 for f in (min, max))
        upper, lower = (f(c[1] for c in corners) * canvas.unit + canvas.height / 2 for f in (min, max))
        px0, px1 = max(0, math.floor(left) - 1), min(canvas.width, math.ceil(right) + 1)
        py0, py1 = max(0, math.floor(upper) - 1), min(canvas.height, math.ceil(lower) + 1)
        if px0 >= px1 or py0 >= py1:
            return
        gx, gy = canvas._window(px0, py0, px1, py1)
        c, s = math.cos(self.angle) / scale, math.sin(self.angle) / scale
        x, y = c * (gx - self.x) + s * (gy - self.y), -s * (gx - self.x) + c * (gy - self.y)
        pixel = 1 / (canvas.unit * scale)
        target = canvas.rgb[py0:py1, px0:px1]

        d = shape.distance(x, y)
        limit = clip.distance(x, y) if clip else None
        cover = np.clip(0.5 - d / max(pixel, soft), 0, 1) * opacity
        if limit is not None:
            cover *= np.clip(0.5 - limit / pixel, 0, 1)
        if shadow:
            dx, dy, blur, strength = shadow
            dark = ramp(shape.distance(x - dx, y - dy), blur, -blur) * strength
            if limit is not None:
                dark *= np.clip(0.5 - limit / pixel, 0, 1)
            target *= 1 - dark[..., None]
        base = albedo(x, y) if callable(albedo) else albedo
        if glow:
            lit = np.broadcast_to(base, target.shape)
        else:
            lit = canvas.light.shade(base, self._normal(d, pixel, bevel), gloss, wrap)
        target += (lit - target) * cover[..., None]
        alpha = canvas.cover[py0:py1, px0:px1]
        alpha += (1 - alpha) * cover

    def _normal(self, d: Array, pixel: float, bevel: float) -> tuple[Array, Array, Array]:
        if bevel <= 0 or min(d.shape) < 2:
            return np.zeros_like(d), np.zeros_like(d), np.ones_like(d)
        down, right = np.gradient(d, pixel)
        length = np.maximum(np.hypot(down, right), 1e-3)
        lean = 1 - np.clip(-d / bevel, 0, 1)  # 1 at the edge, 0 where the surface is flat: a quarter circle
        return right / length * lean, down / length * lean, np.sqrt(np.maximum(1 - lean * lean, 0))


def film(linear: Array, exposure: float = 1.0) -> Array:
    """Linear light to uint8 with a filmic curve (Narkowicz 2015), warm lights, cool shadows and a gentle vignette."""
    height, width = linear.shape[:2]
    x = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
    y = (np.arange(height, dtype=np.float32) + 0.5) / height - 0.5
    vignette = 1 - 0.55 * (x[None, :] ** 2 + y[:, None] ** 2)
    light = np.maximum(linear, 0) * (0.75 * exposure * vignette)[..., None]
    light = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    # The sRGB curve by its usual square-root fit, then the split tone: 2 % of teal below, of amber above.
    tone = np.sqrt(np.clip(light, 0, 1))
    tone = np.clip(0.585122381 * tone + 0.783140355 * np.sqrt(tone) - 0.368262736 * np.sqrt(np.sqrt(tone)), 0, 1)
    luma = tone @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    warm = np.array([0.022, 0.006, -0.020], np.float32)
    tone = tone + (2 * luma[..., None] - 1) * warm
    return np.clip(tone * 251 + 4.5, 0, 255).astype(np.uint8)
