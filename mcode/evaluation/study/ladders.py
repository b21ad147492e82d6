"""A method's codecs, each a ladder of settings: pictures coded at a setting, or at the cheapest with enough bits."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mcode.errors import InputError
from mcode.evaluation.study.methods import SETTINGS, Method

if TYPE_CHECKING:
    from mcode.evaluation.stills import StillCodec
    from mcode.manifold import Manifold
    from mcode.refine import Refiner

FLOOR_SHARE = 0.05
"""By how much the bits of two methods may differ and still be called equal."""


@dataclass(frozen=True)
class Options:
    """How manifolds are loaded and encode."""

    coder: str
    refine: int
    refine_by: str
    perceptual: str | os.PathLike[str] | None
    device: str


@dataclass(frozen=True)
class Ladder:
    """A codec's settings, the fewest bits first. model: MCode's."""

    settings: tuple[int, ...]
    still: Callable[[int], StillCodec]
    model: Manifold | None = None

    @property
    def manifold(self) -> str | None:
        return None if self.model is None else self.model.name


@dataclass(frozen=True)
class Coded:
    """manifold: its name, of MCode. decoded: uint8 (H, W, 3). at_floor: the setting is its ladder's cheapest; of what `code`
    gives: no ladder has one with fewer bits, and they are far more than wanted."""

    setting: int
    manifold: str | None
    at_floor: bool
    bytes: int
    decoded: np.ndarray

    @property
    def bpp(self) -> float:
        return self.bytes * 8 / (self.decoded.shape[0] * self.decoded.shape[1])


def code(ladders: Sequence[Ladder], setting: int | None, wanted: float | None, rgb: np.ndarray) -> Coded:
    """A picture at the setting, or at a rate: with the fewest bits per pixel of all ladders that are at least `wanted`, else
    with the most. rgb: uint8 (H, W, 3)."""
    found = [_at(ladder, setting, wanted, rgb) for ladder in ladders]
    coded = _cheapest(found, wanted)
    at_floor = wanted is not None and _at_floor(found, wanted) and coded.bpp > wanted * (1 + FLOOR_SHARE)
    return replace(coded, at_floor=at_floor)


def _at(ladder: Ladder, setting: int | None, wanted: float | None, rgb: np.ndarray) -> Coded:
    """At the setting, or at the cheapest with at least `wanted` bits per pixel, or at the last."""
    made: dict[int, Coded] = {}

    def coded(setting: int) -> Coded:
        if setting not in made:
            made[setting] = Coded(setting, ladder.manifold, setting == ladder.settings[0], *ladder.still(setting).code(rgb))
        return made[setting]

    if setting is not None:
        return coded(setting)
    assert wanted is not None
    index = bisect_left(ladder.settings, wanted, key=lambda setting: coded(setting).bpp)
    return coded(ladder.settings[min(index, len(ladder.settings) - 1)])


def _cheapest(found: Sequence[Coded], wanted: float | None) -> Coded:
    """With at least `wanted` bits per pixel, else the nearest to it."""
    enough = [each for each in found if wanted is None or each.bpp >= wanted]
    return min(enough, key=lambda each: each.bytes) if enough else max(found, key=lambda each: each.bytes)


def _at_floor(found: Sequence[Coded], wanted: float) -> bool:
    """Whether no setting of any ladder has fewer than `wanted` bits per pixel. found: of each ladder what `_at` gave."""
    return all(each.at_floor and each.bpp >= wanted for each in found)


def open_ladders(
    methods: Sequence[Method], manifolds: Sequence[str | os.PathLike[str] | Manifold], options: Options
) -> dict[str, tuple[Ladder, ...]]:
    """By method; one for each of its manifolds. Raises InputError, ManifoldError before anything is coded."""
    if not options.refine and (spared := [method.name for method in methods if not method.refined]):
        raise InputError(f"--codecs: {spared[0]} is as mcode where nothing is refined; give --refine STEPS, or name it mcode")
    chosen = _chosen(methods, manifolds, options.device)
    refiners: dict[str, Refiner] = {}
    found: dict[str, tuple[Ladder, ...]] = {}
    for method in methods:
        if method.codec != "mcode":
            found[method.name] = (Ladder(SETTINGS[method.codec], _maker(method.codec)),)
            continue
        for model in chosen[method.name]:
            _check_suits(model, method, options)
            if options.refine and method.refined and model.name not in refiners:
                from mcode.refine import Refiner

                refiners[model.name] = Refiner(model, options.refine, judge=options.refine_by, weights=options.perceptual)
        found[method.name] = tuple(
            Ladder(
                tuple(range(1, model.qualities + 1)),
                _mcode_maker(model, options.coder, refiners.get(model.name) if method.refined else None),
                model,
            )
            for model in chosen[method.name]
        )
    return found


def _check_suits(model: Manifold, method: Method, options: Options) -> None:
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
