"""BD-rate: how many more bits a codec takes than another for the same quality, over the qualities both reach."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from mcode.errors import InputError

LEAST_POINTS = 3
LEAST_OVERLAP = 0.1


@dataclass(frozen=True)
class BdRate:
    """percent: more bits than the anchor (negative: fewer). overlap: share of both curves' range of quality they share."""

    percent: float
    overlap: float


def require_bjontegaard() -> None:
    """Raises InputError where the package is not installed."""
    try:
        import bjontegaard  # noqa: F401
    except ImportError as missing:
        raise InputError('bjontegaard is not installed: pip install "mcode[evaluate]"') from missing


def bd_rate(
    anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]], *, higher_is_better: bool = True
) -> BdRate | None:
    """Bjontegaard 2001 with piecewise cubic interpolation of the logarithm of the rate (JCT-VC's common test conditions).

    anchor, test: (rate, quality) at several settings, in any order. A setting that another of the same codec beats at no
    more bits is left out. None where it is not defined: fewer than three settings remain, or less than a tenth of the range
    of quality is in common.
    """
    import bjontegaard

    sign = 1.0 if higher_is_better else -1.0
    curves = [_rising([(rate, sign * quality) for rate, quality in curve]) for curve in (anchor, test)]
    if min(map(len, curves)) < LEAST_POINTS:
        return None
    (low_a, high_a), (low_t, high_t) = ((curve[0][1], curve[-1][1]) for curve in curves)
    overlap = (min(high_a, high_t) - max(low_a, low_t)) / (max(high_a, high_t) - min(low_a, low_t))
    if overlap < LEAST_OVERLAP:
        return None
    (rate_a, quality_a), (rate_t, quality_t) = (tuple(zip(*curve, strict=True)) for curve in curves)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the overlap, which is part of the result
        percent = bjontegaard.bd_rate(
            rate_a, quality_a, rate_t, quality_t, method="pchip", require_matching_points=False, min_overlap=0
        )
    return BdRate(float(percent), overlap)


def _rising(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Sorted by rate, without the points that have no more quality than a cheaper one."""
    kept: list[tuple[float, float]] = []
    for rate, quality in sorted(curve, key=lambda point: (point[0], -point[1])):
        if rate > 0 and (not kept or quality > kept[-1][1]):
            kept.append((rate, quality))
    return kept
