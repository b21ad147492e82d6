"""Options that several commands share, checked with the value and the remedy in the message."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from mcode.errors import InputError
from mcode.packet import MOST_QUALITIES
from mcode.packet import OFFERED as CODERS

CODECS = ("h264", "h265", "av1")
LANES = ("fixed", "huffman", "h264", "h265", "range")


class Size(NamedTuple):
    width: int
    height: int


SMALL = Size(128, 128)
DEMO_SIZE = Size(640, 360)


def whole(flag: str, meaning: str, low: int, high: int) -> Callable[[Any], int]:
    def parse(text: Any) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise InputError(f"{flag} {text}: {meaning} is a whole number from {low} to {high}")
        return value

    return parse


def seconds_of(flag: str, meaning: str, *, zero: bool = False) -> Callable[[Any], float]:
    """Seconds as `90`, `1:30` or `0:01:30.5`."""

    def parse(text: Any) -> float:
        value = 0.0
        try:
            parts = [float(part) for part in str(text).split(":")]
        except ValueError:
            parts = []
        for part in parts:
            value = 60 * value + part
        good = 1 <= len(parts) <= 3 and min(parts) >= 0 and math.isfinite(value)
        if not good or (value == 0 and not zero):
            limit = "0 or more" if zero else "more than 0"
            raise InputError(f"{flag} {text}: {meaning} is {limit} seconds, as 90 or 1:30")
        return value

    return parse


def one_of(flag: str, *choices: str) -> Callable[[Any], str]:
    def parse(text: Any) -> str:
        if text not in choices:
            raise InputError(f"{flag} {text}: choose {_any_of(choices)}{_near(str(text), choices)}")
        return text

    return parse


def size_of(flag: str, *, native: bool = True) -> Callable[[Any], Size | None]:
    """`640x360`, or None for `native` where that is allowed."""

    def parse(text: Any) -> Size | None:
        if text == "native" and native:
            return None
        if isinstance(text, Size):
            return text
        width, _, height = str(text).lower().partition("x")
        if width.isdecimal() and height.isdecimal() and 1 <= int(width) <= 65535 and 1 <= int(height) <= 65535:
            return Size(int(width), int(height))
        other = ", or native" if native else ""
        raise InputError(f"{flag} {text}: a size is WIDTHxHEIGHT with both from 1 to 65535, as 640x360{other}")

    return parse


def number(flag: str, low: float, high: float, meaning: str) -> Callable[[Any], float]:
    """meaning: the whole remedy, as "a loss is from 0 to 1, as 0.05"."""

    def parse(text: Any) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise InputError(f"{flag} {text}: {meaning}")
        return value

    return parse


def some_of(flag: str, what: str, *choices: str) -> Callable[[Any], str]:
    """Some of choices, parted by commas, each once."""

    def parse(text: Any) -> str:
        names = [name.strip() for name in str(text).split(",")]
        for name in names:
            if name not in choices:
                raise InputError(f"{flag} {text}: unknown {what} {name!r}; choose from {', '.join(choices)}")
        return ",".join(dict.fromkeys(names))

    return parse


def baseline_rate(text: Any) -> str | float:
    """kbit/s, or `equal`."""
    if text == "equal":
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e6:
        raise InputError(f"--baseline-rate {text}: give kbit/s, more than 0 and below 1000000, or equal")
    return value


def fec(text: Any) -> str:
    parts = str(text).split("+")
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= 64 for part in parts):
        raise InputError(f"--fec {text}: give packets and parity packets for them, both from 1 to 64, as 8+2")
    return str(text)


def _any_of(choices: Sequence[str]) -> str:
    return " or ".join([", ".join(choices[:-1]), choices[-1]]) if len(choices) > 1 else choices[0]


def _near(text: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, choices, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


Video = Annotated[str, typer.Argument(metavar="INPUT", help="A video or image: anything FFmpeg opens.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite the output if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Judges = Annotated[
    str | None,
    typer.Option(
        "--perceptual",
        metavar="DIR",
        help="Folder of the metrics' weights; each metric whose weights are there is measured. Else $MCODE_PERCEPTUAL.",
        show_default=False,
    ),
]
Refine = Annotated[
    int,
    typer.Option(
        "--refine",
        metavar="STEPS",
        parser=whole("--refine", "the number of steps", 0, 10_000),
        help="Look so many steps for symbols that show more for the same bits; 100 is a good number. Each takes about a "
        "second for a megapixel on one processor core; decoding takes no longer than before.",
    ),
]
RefineBy = Annotated[
    str,
    typer.Option(
        "--refine-by",
        metavar="eye|vgg19",
        parser=one_of("--refine-by", "eye", "vgg19"),
        help="What refining sees by: eye is MCode's own; vgg19 sees more and is slower, and needs its weights.",
    ),
]
RefineWeights = Annotated[
    str | None,
    typer.Option(
        "--perceptual",
        metavar="DIR",
        help="For --refine-by vgg19: folder of VGG19's and SqueezeNet's weights. Else $MCODE_PERCEPTUAL.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|mps",
        parser=one_of("--device", "auto", "cpu", "cuda", "mps"),
        help="Where the networks run.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(metavar="SEED", parser=whole("--seed", "the seed", 0, 2**32 - 1), help="The same seed gives the same result."),
]
Interval = Annotated[
    int,
    typer.Option(
        "--n",
        "-n",
        metavar="N",
        parser=whole("--n", "the keyframe interval", 1, 65535),
        help="Send every N-th frame; the receiver interpolates the others.",
    ),
]
Manifold = Annotated[str, typer.Option("--manifold", "-m", metavar="NAME|FILE", help="An installed manifold, or a file.")]
Coder = Annotated[
    str,
    typer.Option(
        metavar="huffman|fixed|range",
        parser=one_of("--coder", *CODERS),
        help="range is the smallest, for manifolds that have a hyperprior; huffman is for all; fixed survives bit errors best.",
    ),
]
Quality = Annotated[
    int | None,
    typer.Option(
        metavar="1..15",
        parser=whole("--quality", "the quality", 1, MOST_QUALITIES),
        help="More is better and larger; most manifolds have 8. The manifold's own default if left out.",
        show_default=False,
    ),
]
CodedSize = Annotated[
    Size | None,
    typer.Option(
        metavar="WxH|native",
        parser=size_of("--size"),
        help="Size at which the manifold sees the video; chosen to suit the manifold if left out.",
        show_default=False,
    ),
]
Refresh = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        parser=seconds_of("--refresh", "the time between refreshes"),
        help="A keyframe is sent whole this often: there a player can join or seek.",
    ),
]
Adaptive = Annotated[
    bool,
    typer.Option("--adaptive", help="N is the most: keyframes come sooner where the frames between would blur."),
]


def rate_option(besides: str = "") -> Any:
    """besides: what the rate pays for beside the keyframes, in the help."""
    return typer.Option(
        "--rate",
        metavar="KBPS",
        parser=number("--rate", 0.01, 100_000, "a rate is from 0.01 to 100000 kbit/s"),
        help=f"N is the most: keyframes come as soon as this rate has paid for them{besides}.",
        show_default=False,
    )


Rate = Annotated[float | None, rate_option()]
Bundle = Annotated[
    int,
    typer.Option(
        metavar="KEYFRAMES",
        parser=whole("--bundle", "the number of keyframes in a packet", 1, 64),
        help="So many keyframes share a packet, where they fit: fewer bytes of headers, and as much later on the screen.",
    ),
]
Start = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        parser=seconds_of("--start", "the start", zero=True),
        help="Skip this much of the input; 1:30 works too.",
    ),
]
Duration = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        parser=seconds_of("--duration", "the duration"),
        help="Use this much of the input; all of it if left out.",
        show_default=False,
    ),
]
FirstSeconds = Annotated[
    float | None,
    typer.Option(
        "--duration",
        metavar="SECONDS",
        parser=seconds_of("--duration", "the duration"),
        help="Use this much of the input; the first 30 s if left out.",
        show_default=False,
    ),
]
Audio = Annotated[
    str,
    typer.Option(
        metavar="copy|none", parser=one_of("--audio", "copy", "none"), help="Keep the sound as it is, or leave it out."
    ),
]
BitErrorRate = Annotated[
    float,
    typer.Option(
        "--bit-error-rate",
        metavar="RATE",
        parser=number("--bit-error-rate", 0, 0.5, "a bit error rate is from 0 to 0.5, as 1e-3"),
        help="Flip bits of the pictures' payloads with this probability; headers are spared, alike in all lanes.",
    ),
]
Loss = Annotated[
    float,
    typer.Option(
        "--loss",
        metavar="SHARE",
        parser=number("--loss", 0, 1, "a loss is a share from 0 to 1, as 0.05"),
        help="Lose this share of the packets.",
    ),
]


def output_option(metavar: str, help: str) -> Any:
    return typer.Option("--output", "-o", metavar=metavar, help=help, show_default=False)
