"""The methods of a study as they are asked for: a codec at a setting, or at a rate, and the names that follow from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mcode.errors import InputError


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
