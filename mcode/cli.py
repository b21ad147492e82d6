"""The command line: options in, one call into the library, a table or one JSON object out. No codec logic.

The library is imported inside the command that uses it, so that `mcode --help` loads neither torch nor PyAV.
Exit status: 0 done; 1 an unexpected failure, or a check that did not hold; 2 something the user can mend; 130 Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import typer

from mcode.errors import InputError, ManifoldError, McodeError

UsageError = typer.BadParameter.__base__
"""Typer's parent of every usage error; it has lived in click and in typer, and both call it this way."""

CODERS = ("huffman", "fixed")
CODECS = ("h264", "h265", "av1")
LANES = ("fixed", "huffman", "h264", "h265")
EXTRAS = {"PyQt6": "player", "pyqtgraph": "player", "reedsolo": "live"}
"""Packages that a plain `pip install mcode` leaves out, and the extra that brings each."""
MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENAMETOOLONG}
"""Errors of the operating system which the user can mend (a full disk, no permission): status 2, not 1."""

app = typer.Typer(
    help="MCode sends video as coordinates on a learned manifold: a few hundred bytes a second.",
    epilog="Start with:  mcode encode clip.mp4 -o clip.mcode,  then  mcode decode clip.mcode -o back.mp4",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
manifolds_app = typer.Typer(help="List, show and verify the manifolds of this machine.", no_args_is_help=True)
app.add_typer(manifolds_app, name="manifolds")
evaluate_app = typer.Typer(help="Measure codecs on test material.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")


# Options: what is typed on the command line, checked with the value and the remedy in the message.


class Size(NamedTuple):
    width: int
    height: int


SMALL = Size(128, 128)
DEMO_SIZE = Size(640, 360)


def _whole(flag: str, meaning: str, low: int, high: int) -> Callable[[Any], int]:
    def parse(text: Any) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise InputError(f"{flag} {text}: {meaning} is a whole number from {low} to {high}")
        return value

    return parse


def _seconds(flag: str, meaning: str, *, zero: bool = False) -> Callable[[Any], float]:
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


def _choice(flag: str, *choices: str) -> Callable[[Any], str]:
    def parse(text: Any) -> str:
        if text not in choices:
            raise InputError(f"{flag} {text}: choose {_any_of(choices)}{_near(str(text), choices)}")
        return text

    return parse


def _size(flag: str, *, native: bool = True) -> Callable[[Any], Size | None]:
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


def _number(flag: str, low: float, high: float, meaning: str) -> Callable[[Any], float]:
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


def _list(flag: str, what: str, *choices: str) -> Callable[[Any], str]:
    """Some of choices, parted by commas, each once."""

    def parse(text: Any) -> str:
        names = [name.strip() for name in str(text).split(",")]
        for name in names:
            if name not in choices:
                raise InputError(f"{flag} {text}: unknown {what} {name!r}; choose from {', '.join(choices)}")
        return ",".join(dict.fromkeys(names))

    return parse


def _baseline_rate(text: Any) -> str | float:
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


def _fec(text: Any) -> str:
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
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|mps",
        parser=_choice("--device", "auto", "cpu", "cuda", "mps"),
        help="Where the networks run.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="SEED", parser=_whole("--seed", "the seed", 0, 2**32 - 1), help="The same seed gives the same result."
    ),
]
Interval = Annotated[
    int,
    typer.Option(
        "--n",
        "-n",
        metavar="N",
        parser=_whole("--n", "the keyframe interval", 1, 65535),
        help="Send every N-th frame; the receiver interpolates the others.",
    ),
]
Manifold = Annotated[str, typer.Option("--manifold", "-m", metavar="NAME|FILE", help="An installed manifold, or a file.")]
Coder = Annotated[
    str,
    typer.Option(
        metavar="huffman|fixed",
        parser=_choice("--coder", *CODERS),
        help="huffman is the smallest; fixed survives bit errors best.",
    ),
]
Quality = Annotated[
    int | None,
    typer.Option(
        metavar="1..8",
        parser=_whole("--quality", "the quality", 1, 8),
        help="More is better and larger; the manifold's own default if left out.",
        show_default=False,
    ),
]
CodedSize = Annotated[
    Size | None,
    typer.Option(
        metavar="WxH|native",
        parser=_size("--size"),
        help="Size at which the manifold sees the video; chosen to suit the manifold if left out.",
        show_default=False,
    ),
]
Start = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        parser=_seconds("--start", "the start", zero=True),
        help="Skip this much of the input; 1:30 works too.",
    ),
]
Duration = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        parser=_seconds("--duration", "the duration"),
        help="Use this much of the input; all of it if left out.",
        show_default=False,
    ),
]
Audio = Annotated[
    str,
    typer.Option(
        metavar="copy|none", parser=_choice("--audio", "copy", "none"), help="Keep the sound as it is, or leave it out."
    ),
]
BitErrorRate = Annotated[
    float,
    typer.Option(
        "--bit-error-rate",
        metavar="RATE",
        parser=_number("--bit-error-rate", 0, 0.5, "a bit error rate is from 0 to 0.5, as 1e-3"),
        help="Flip bits of the pictures' payloads with this probability; headers are spared, alike in all lanes.",
    ),
]
Loss = Annotated[
    float,
    typer.Option(
        "--loss",
        metavar="SHARE",
        parser=_number("--loss", 0, 1, "a loss is a share from 0 to 1, as 0.05"),
        help="Lose this share of the packets.",
    ),
]


def _output(metavar: str, help: str) -> Any:
    return typer.Option("--output", "-o", metavar=metavar, help=help, show_default=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from mcode import __version__

        print(f"mcode {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# Commands, in the order of the help.


@app.command()
def encode(
    input: Video,
    output: Annotated[str, _output("OUT.mcode", "The file to write.")],
    n: Interval = 4,
    manifold: Manifold = "general",
    coder: Coder = "huffman",
    quality: Quality = None,
    refresh: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            parser=_seconds("--refresh", "the time between refreshes"),
            help="A keyframe is sent whole this often: there a player can join or seek.",
        ),
    ] = 10,
    device: Device = "auto",
    size: CodedSize = None,
    start: Start = 0,
    duration: Duration = None,
    audio: Audio = "copy",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Encode a video or image to an .mcode file."""
    from mcode.transcode import encode_file

    with _progress("encoding") as progress:
        report = encode_file(
            input,
            output,
            n=n,
            manifold=manifold,
            coder=coder,
            quality=quality,
            refresh_s=refresh,
            device=device,
            size=size,
            start_s=start,
            duration_s=duration,
            audio=audio,
            force=force,
            progress=progress,
        )
    _warn(report.warnings)
    if as_json:
        _print_json(report)
        return
    _print_report(
        output,
        {
            "frames": f"{report.frames:,} in {_clock(report.duration_s)}: {report.keyframes:,} sent, one in {report.n}",
            "rate": f"{_rate(report.rate_kbps)} ({report.payload_bytes:,} bytes of picture)",
            "file": f"{_bytes(report.file_bytes)}, container and sound included",
            "quality": f"{_decibels(report.psnr_db)} PSNR",
            "manifold": f"{report.manifold} {report.manifold_id}, fit {report.fit:.2f}",
            "coder": report.coder,
            "speed": f"{report.encode_fps:.1f} frames/s",
        },
    )


@app.command()
def decode(
    input: Annotated[str, typer.Argument(metavar="IN.mcode", help="The file to decode.", show_default=False)],
    output: Annotated[
        str, _output("OUT", "A .mp4, .mkv or .y4m, a .png, images as frames-%05d.png, or - for y4m on standard output.")
    ],
    manifold: Annotated[
        str | None,
        typer.Option(
            "--manifold",
            "-m",
            metavar="NAME|FILE",
            help="The manifold it was encoded with; looked up among the installed ones if left out.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    size: Annotated[
        Size | None,
        typer.Option(
            metavar="WxH|native",
            parser=_size("--size"),
            help="Scale to this size; the source's if left out.",
            show_default=False,
        ),
    ] = None,
    audio: Audio = "copy",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Decode an .mcode file to a video, images or a pipe."""
    if output == "-" and as_json:
        raise InputError("-o - and --json both write to standard output: leave one of them out")
    if output == "-" and sys.stdout.isatty():
        raise InputError("-o - writes raw video, and standard output is a terminal: pipe it, as in | ffplay -")
    from mcode.transcode import decode_file

    with _progress("decoding") as progress:
        report = decode_file(
            input,
            output,
            manifold=manifold,
            device=device,
            force=force,
            audio=audio == "copy",
            size=size,
            progress=progress,
        )
    _warn(report.warnings)
    if as_json:
        _print_json(report)
    elif output != "-":
        rows = {
            "frames": f"{report.frames:,} of {report.width}x{report.height}",
            "speed": f"{report.decode_fps:.1f} frames/s",
        }
        _print_report(output, rows)


@app.command()
def info(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="An .mcode file, a manifold (file or name) or a video.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Tell what is in an .mcode file, a manifold or a video."""
    if not os.path.exists(file) and os.path.splitext(file)[1] not in ("", ".safetensors"):
        raise InputError(f"{file}: no such file")
    if not os.path.exists(file) or _is_safetensors(file):
        _show_manifold(file, as_json)
    elif file.lower().endswith(".mcode") or _is_stream(file):
        _show_stream(file, as_json)
    else:
        _show_video(file, as_json)


@manifolds_app.command("list")
def list_(as_json: Json = False) -> None:
    """List the installed manifolds."""
    from mcode.manifold import folders, list_manifolds

    found = list_manifolds()
    if as_json:
        _print_json({"manifolds": found})
        return
    if not found:
        places = ", ".join(map(str, folders()))
        print(f"No manifold is installed. Make one with mcode adapt, or put .safetensors files into one of {places}.")
        return
    _print_table(
        ("name", "kind", "frame", "parameters", "file", "id", "title"),
        [(m.name, m.kind, _frame_size(m), f"{m.parameters:,}", _bytes(m.file_bytes), m.id, m.title) for m in found],
        right=("parameters", "file"),
    )


@manifolds_app.command()
def show(
    manifold: Annotated[str, typer.Argument(metavar="NAME|FILE", help="An installed manifold, or a file.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show one manifold and its card.

    The card tells the data and its licence, the training, the scores, and what the manifold is not for.
    """
    _show_manifold(manifold, as_json)


@manifolds_app.command()
def verify(
    manifolds: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|FILE]...", help="Manifolds; all installed ones if left out.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check manifolds against their hashes.

    Exits with 1 where one is not what it says it is.
    """
    from mcode import manifold

    wanted = [manifold.read_info(name) for name in manifolds] if manifolds else manifold.list_manifolds()
    results = []
    for known in wanted:
        try:
            manifold.verify(known.path)
            error = None
        except ManifoldError as mismatch:
            error = _one_line(str(mismatch))
        results.append({"name": known.name, "path": known.path, "id": known.id, "ok": error is None, "error": error})
    good = all(result["ok"] for result in results)
    if as_json:
        _print_json({"ok": good, "manifolds": results})
    else:
        for result in results:
            print(f"{result['name']}  {result['id']}  {'ok' if result['ok'] else 'BAD: ' + str(result['error'])}")
    if not good:
        raise typer.Exit(1)


def _is_safetensors(path: str) -> bool:
    """Eight bytes of length, then JSON."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, not a file")
    with open(path, "rb") as file:
        head = file.read(9)
    return path.endswith(".safetensors") or (head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32)


def _is_stream(path: str) -> bool:
    """An .mcode file under another name."""
    from mcode.container import McodeReader

    try:
        McodeReader(path)
    except McodeError:
        return False
    return True


def _show_stream(path: str, as_json: bool) -> None:
    import av

    from mcode.container import McodeReader
    from mcode.manifold import list_manifolds

    reader = McodeReader(path)
    header = reader.header
    packets = [(packet.steps, packet.header is not None) for packet in reader]
    with av.open(path) as container:
        sound = container.streams.best("audio")
        audio = sound.codec_context.codec.canonical_name if sound else None
    manifold_id = header.manifold_id.hex()
    name = next((m.name for m in list_manifolds() if m.id == manifold_id), None)
    facts: dict[str, Any] = {
        "type": "mcode",
        "path": path,
        "frames": sum(steps for steps, _ in packets),
        "keyframes": reader.keyframes,
        "refreshes": sum(refresh for _, refresh in packets),
        "duration_s": reader.duration_s,
        "payload_bytes": reader.payload_bytes,
        "file_bytes": os.path.getsize(path),
        "rate_kbps": reader.payload_bytes * 8 / 1000 / reader.duration_s if reader.duration_s else None,
        "n": header.n,
        "coder": header.coder,
        "quality": header.quality,
        "slices": header.slices,
        "width": header.display_width,
        "height": header.display_height,
        "coded_width": header.width,
        "coded_height": header.height,
        "manifold": name,
        "manifold_id": manifold_id,
        "manifold_installed": name is not None,
        "audio": audio,
        "truncated": reader.truncated,
        "damaged_keyframes": reader.damaged,
        "metadata": reader.metadata,
    }
    if as_json:
        _print_json(facts)
        return
    shown = f"{header.display_width}x{header.display_height}"
    coded = f"{header.width}x{header.height}"
    rows = {
        "picture": shown if shown == coded else f"{shown}, sent as {coded}",
        "length": f"{_clock(reader.duration_s)}, {facts['frames']:,} frames",
        "keyframes": f"{reader.keyframes:,}, one frame in {header.n}, {facts['refreshes']:,} of them refreshes",
        "rate": f"{_rate(facts['rate_kbps'])} ({reader.payload_bytes:,} bytes of picture)",
        "file": f"{_bytes(facts['file_bytes'])}, container and sound included",
        "manifold": f"{name} {manifold_id}" if name else f"{manifold_id}, not installed: decode with --manifold FILE",
        "coder": f"{header.coder}, quality {header.quality}" + (f", {header.slices} slices" if header.slices > 1 else ""),
        "audio": audio or "none",
    }
    if reader.truncated:
        rows["cut off"] = f"{reader.truncated} is there"
    if reader.damaged:
        rows["damaged"] = f"{reader.damaged:,} keyframes"
    rows |= {key: _one_line(value) for key, value in reader.metadata.items()}
    _print_report(path, rows)


def _show_manifold(name: str, as_json: bool) -> None:
    from mcode.manifold import read_info

    known = read_info(name)
    if as_json:
        _print_json({"type": "manifold", **_plain(known)})
        return
    rows = {
        "kind": known.kind,
        "id": known.id,
        "frame": _frame_size(known),
        "qualities": f"1 to {known.qualities}" if known.qualities > 1 else "1",
        "parameters": f"{known.parameters:,}",
        "file": f"{known.path} ({_bytes(known.file_bytes)})",
    }
    rows |= {key: _card_text(value) for key, value in known.card.items() if key != "title"}
    _print_report(f"{known.name}: {known.title}" if known.title else known.name, rows)


def _frame_size(manifold: Any) -> str:
    return f"{manifold.frame_size[0]}x{manifold.frame_size[1]}" if manifold.frame_size else "any"


def _card_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return _one_line(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _show_video(path: str, as_json: bool) -> None:
    from mcode.video import probe

    found = probe(path)
    if as_json:
        _print_json({"type": "video", "path": path, **_plain(found)})
        return
    rate = f"{found.average_fps:.3g} frames/s" if found.average_fps else None
    length = _clock(found.duration_s) if found.duration_s else None
    frames = f"{found.frames:,} frames" if found.frames and not found.is_image else None
    rows = {
        "picture": f"{found.width}x{found.height}, {found.video_codec}, {found.pixel_format}",
        "length": ", ".join(part for part in (length, frames, rate) if part),
        "audio": found.audio_codec or "none",
    }
    _print_report(f"{path}: {'image' if found.is_image else 'video'}, not encoded by mcode", rows)


@app.command()
def adapt(
    videos: Annotated[
        list[str], typer.Argument(metavar="VIDEO...", help="Footage of the scene or face to learn.", show_default=False)
    ],
    output: Annotated[str, _output("OUT.safetensors", "The manifold to write.")],
    kind: Annotated[
        str,
        typer.Option(metavar="linear", parser=_choice("--kind", "linear"), help="What to learn: principal components."),
    ] = "linear",
    m: Annotated[
        int,
        typer.Option(
            "--m",
            metavar="M",
            parser=_whole("--m", "the number of coordinates", 1, 4096),
            help="Coordinates of a frame.",
        ),
    ] = 50,
    size: Annotated[
        Size | None,
        typer.Option(
            metavar="WxH|native",
            parser=_size("--size"),
            help="Frame size to learn; the middle is cut to its shape.  [default: 128x128]",
            show_default=False,
        ),
    ] = SMALL,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            parser=_seconds("--seconds", "the length to learn from"),
            help="Learn from this much of each video; all of it if left out.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Learn a manifold of one scene or face from footage, in seconds."""
    from mcode.training.adapt import adapt_linear
    from mcode.video import probe

    if size is None:
        first = probe(videos[0])
        size = Size(first.width, first.height)
    with _progress("learning") as progress:
        report = adapt_linear(videos, output, m=m, size=size, seconds=seconds, seed=seed, force=force, progress=progress)
    if as_json:
        _print_json(report)
        return
    _print_report(
        output,
        {
            "manifold": f"{kind} {report.manifold_id}, {report.m} coordinates",
            "learned from": f"{report.frames:,} frames",
            "quality": f"{_decibels(report.psnr_db)} PSNR ({report.quantised_loss_db:.2f} dB lost by storing it small)",
            "rate": f"about {_rate(report.kbps_estimate)}",
            "file": _bytes(report.file_bytes),
            "use it": f"mcode encode VIDEO -o OUT.mcode --manifold {output}",
        },
    )


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG.toml", help="What to train: see configs/.", show_default=False)],
    data: Annotated[str, typer.Option(metavar="DIR", help="Folder of training videos or images.", show_default=False)],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder for checkpoints and the manifold.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a manifold from a configuration."""
    from mcode.manifold import read_info
    from mcode.training.train import train

    def report(row: dict[str, float]) -> None:
        print("  ".join(f"{key} {value:g}" for key, value in row.items()), file=sys.stderr)

    path = train(config, data, out, resume=resume, device=device, report=report)
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun the first process writes and speaks
    if as_json:
        _print_json({"path": path, "manifold": read_info(path)})
    else:
        _show_manifold(str(path), as_json=False)


@app.command()
def compare(
    input: Video,
    output: Annotated[str, _output("REPORT.html", "The page to write; a picture and a video go beside it.")],
    against: Annotated[
        str,
        typer.Option(
            metavar="CODEC,...",
            parser=_list("--against", "codec", *CODECS),
            help=f"Codecs to compare with, from {', '.join(CODECS)}.",
        ),
    ] = ",".join(CODECS),
    n: Interval = 4,
    manifold: Manifold = "general",
    coder: Coder = "huffman",
    quality: Quality = None,
    device: Device = "auto",
    size: CodedSize = None,
    start: Start = 0,
    duration: Duration = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compare MCode with other codecs at equal rate and equal PSNR."""
    from mcode.evaluation.compare import compare as compare_codecs

    with _progress("comparing") as progress:
        report = compare_codecs(
            input,
            output,
            against=tuple(against.split(",")),
            n=n,
            manifold=manifold,
            coder=coder,
            quality=quality,
            device=device,
            size=size,
            start_s=start,
            duration_s=duration,
            force=force,
            progress=progress,
        )
    _warn(report.warnings)
    if as_json:
        _print_json(report)
        return
    _print_table(
        ("codec", "at", "setting", "kbit/s", "PSNR dB", "SSIM", "bits"),
        [
            (
                row.codec,
                "" if row.at == "mcode" else row.at + (" (its floor)" if row.floor else ""),
                row.setting,
                f"{row.rate_kbps:.2f}",
                f"{row.psnr_db:.2f}",
                "" if row.ssim is None else f"{row.ssim:.4f}",
                f"{row.bits:.1f}x",
            )
            for row in report.rows
        ],
        right=("kbit/s", "PSNR dB", "SSIM", "bits"),
    )
    print(f"\n{report.frames:,} frames at {report.width}x{report.height}")
    for name, path in report.files.items():
        print(f"  {name:<8} {path}")


@evaluate_app.command("stills")
def stills_(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder of images.", show_default=False)],
    manifold: Manifold = "general",
    perceptual: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder of VGG19's and MobileNet's weights, to measure distances too; else $MCODE_PERCEPTUAL.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure MCode beside JPEG, JPEG 2000, WebP, H.265 and AV1 on images."""
    from mcode.evaluation import stills
    from mcode.evaluation.features import WEIGHTS_VARIABLE, FeatureDistances
    from mcode.manifold import load

    images = stills.read_images(folder)
    model = load(manifold, device)
    codecs = [_mcode_still(model, quality) for quality in range(1, model.qualities + 1)]
    given = perceptual or os.environ.get(WEIGHTS_VARIABLE)
    distances = FeatureDistances(given) if given else None
    with _progress("measuring", "images") as progress:
        rows = stills.rd_table(images, [*codecs, *stills.standard_codecs()], distances, progress)
    if as_json:
        _print_json({"manifold": model.name, "manifold_id": model.id, "rows": rows})
    else:
        _print_rows(rows)


def _mcode_still(model: Any, quality: int) -> Any:
    """MCode as a picture codec: one refresh keyframe, n = 1."""
    from mcode.codec import Decoder, Encoder
    from mcode.evaluation.stills import StillCodec
    from mcode.frame import Frame

    def code(rgb: Any) -> tuple[int, Any]:
        encoder = Encoder(model, rgb.shape[1], rgb.shape[0], n=1, quality=quality)
        packets = [*encoder.push(Frame(rgb, 0)), *encoder.flush()]
        (decoded,) = [frame for decoder in [Decoder(model)] for packet in packets for frame in decoder.push(packet)]
        return sum(len(packet.to_sample(1)) for packet in packets), decoded.rgb

    return StillCodec(f"MCode {model.name}", f"quality {quality}", code)


@evaluate_app.command("channel")
def channel_(
    input: Video,
    output: Annotated[
        str | None,
        _output("FOLDER", "Where to write the report, the curves and the pictures; only the table if left out."),
    ] = None,
    manifold: Manifold = "general",
    n: Interval = 4,
    quality: Quality = None,
    lanes: Annotated[
        str,
        typer.Option(
            metavar="LANE,...",
            parser=_list("--lanes", "lane", *LANES),
            help=f"What to send: MCode with a coder, or an ordinary codec; from {', '.join(LANES)}.",
        ),
    ] = ",".join(LANES),
    seeds: Annotated[
        int,
        typer.Option(
            metavar="COUNT",
            parser=_whole("--seeds", "the number of seeds", 1, 1000),
            help="Damage each lane so many times, and take the mean.",
        ),
    ] = 5,
    size: CodedSize = None,
    start: Start = 0,
    duration: Duration = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure MCode beside H.264 and H.265 on a noisy channel.

    All lanes at one rate, or at their floor; bit errors from 0 to 5e-2, then losses from 0 to 50 %.
    """
    with _extras():
        from mcode.evaluation.channel import LABELS, evaluate_channel

    with _progress("measuring", "runs") as progress:
        report = evaluate_channel(
            input,
            output,
            manifold=manifold,
            n=n,
            quality=quality,
            lanes=tuple(lanes.split(",")),
            seeds=seeds,
            size=size,
            start_s=start,
            duration_s=duration,
            device=device,
            force=force,
            progress=progress,
        )
    if as_json:
        _print_json(report)
        return
    names = [rate.lane for rate in report.rates]
    found = {(row.lane, row.bit_error_rate, row.loss): row for row in report.rows}
    conditions = dict.fromkeys((row.bit_error_rate, row.loss) for row in report.rows)
    table = [
        ("kbit/s", *(f"{rate.rate_kbps:.2f}" + (" (its floor)" if rate.at_floor else "") for rate in report.rates)),
        *(
            (
                f"{loss:.0%} lost" if loss else f"bit errors {errors:g}" if errors else "clean",
                *(f"{row.psnr_db:.2f} ({row.ssim:.3f})" for row in (found[name, errors, loss] for name in names)),
            )
            for errors, loss in conditions
        ),
    ]
    _print_table(("PSNR dB (SSIM)", *(LABELS[name] for name in names)), table, right=[LABELS[name] for name in names])
    print(f"\n{report.frames:,} frames at {report.width}x{report.height}, {report.seeds} seeds")
    for path in report.files:
        print(f"  {path}")


@app.command()
def testclip(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The video to write: .mp4 or .mkv.", show_default=False)],
    scene: Annotated[
        str,
        typer.Option(
            metavar="demo|arms|face|pan",
            parser=_choice("--scene", "demo", "arms", "face", "pan"),
            help="Moving arms, a talking face, a slow pan, or all three in turn.",
        ),
    ] = "demo",
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", parser=_seconds("--seconds", "the length"), help="Length of the clip.")
    ] = 9,
    size: Annotated[
        Size | None,
        typer.Option(
            metavar="WxH",
            parser=_size("--size", native=False),
            help="Frame size.  [default: 640x360]",
            show_default=False,
        ),
    ] = DEMO_SIZE,
    fps: Annotated[
        int, typer.Option(metavar="FPS", parser=_whole("--fps", "the frame rate", 1, 240), help="Frames a second.")
    ] = 25,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Render a clip to try MCode with."""
    from mcode.testclip import write_clip

    asked: dict[str, Any] = {"scene": scene, "seconds": seconds, "fps": fps, "size": size, "seed": seed}
    with _progress("rendering") as progress:
        write_clip(output, **asked, force=force, progress=progress)
    file_bytes = os.path.getsize(output)
    if as_json:
        _print_json({"path": output, **asked, "file_bytes": file_bytes})
    else:
        print(f"{output}: {_clock(seconds)} of {scene}, {_bytes(file_bytes)}")


# Live: sending, receiving, the window.


@app.command()
def send(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT|camera:0|testsrc",
            help="A video, a camera, or a moving test picture.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="rtp://HOST:PORT",
            help="Where to: MCode goes to PORT, the baseline to PORT + 2, sound to PORT + 4.",
        ),
    ] = "rtp://127.0.0.1:5004",
    n: Interval = 4,
    manifold: Manifold = "general",
    coder: Coder = "huffman",
    quality: Quality = None,
    refresh: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            parser=_seconds("--refresh", "the time between refreshes"),
            help="Both lanes send a picture whole this often: there a receiver joins or recovers.",
        ),
    ] = 5,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="h264|h265|none",
            parser=_choice("--baseline", "h264", "h265", "none"),
            help="The ordinary codec that is sent beside MCode.",
        ),
    ] = "h264",
    baseline_rate: Annotated[
        Any,
        typer.Option(
            "--baseline-rate",
            metavar="equal|KBPS",
            parser=_baseline_rate,
            help="The baseline's rate in kbit/s, or equal to MCode's as measured on the way.",
        ),
    ] = "equal",
    bit_error_rate: BitErrorRate = 0,
    loss: Loss = 0,
    burst: Annotated[
        float,
        typer.Option(
            metavar="PACKETS",
            parser=_number("--burst", 1, 1e6, "a mean burst is 1 packet or more"),
            help="Packets are lost so many in a row, on average.",
        ),
    ] = 1,
    delay_ms: Annotated[
        float,
        typer.Option(
            "--delay-ms",
            metavar="MS",
            parser=_number("--delay-ms", 0, 60_000, "a delay is from 0 to 60000 ms"),
            help="Hold every packet back by this much.",
        ),
    ] = 0,
    jitter_ms: Annotated[
        float,
        typer.Option(
            "--jitter-ms",
            metavar="MS",
            parser=_number("--jitter-ms", 0, 60_000, "a jitter is from 0 to 60000 ms"),
            help="Hold packets back by up to this much more, at random: they overtake each other.",
        ),
    ] = 0,
    seed: Seed = 0,
    realtime: Annotated[
        bool,
        typer.Option("--realtime/--no-realtime", help="Send frames at their time, or as fast as they are coded."),
    ] = True,
    sdp: Annotated[
        str | None,
        typer.Option(
            metavar="OUT.sdp",
            help="Write the session's description; the baseline's alone, for other players, goes beside it.",
            show_default=False,
        ),
    ] = None,
    size: CodedSize = None,
    start: Start = 0,
    duration: Duration = None,
    loop: Annotated[bool, typer.Option("--loop", help="Start a file over at its end, until Ctrl-C.")] = False,
    audio: Annotated[
        str,
        typer.Option(
            metavar="opus|none",
            parser=_choice("--audio", "opus", "none"),
            help="Send the sound as Opus, or leave it out.",
        ),
    ] = "opus",
    fec: Annotated[
        str | None,
        typer.Option(
            metavar="DATA+PARITY",
            parser=_fec,
            help="Add parity packets for every so many, as 8+2: up to that many lost of them come back.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Send a video, a camera or a test picture live, over RTP.

    An ordinary codec and the sound go beside MCode. The simulated channel damages all pictures alike, before they
    leave. Ends with the source, or by Ctrl-C.
    """
    with _extras():
        from mcode.send import SendConfig
        from mcode.send import send as send_stream
    from mcode.channel import ChannelSettings

    config = SendConfig(
        input=input,
        to=to,
        n=n,
        manifold=manifold,
        coder=coder,
        quality=quality,
        refresh_s=refresh,
        baseline=baseline,
        baseline_rate=baseline_rate,
        channel=ChannelSettings(bit_error_rate, loss, burst, delay_ms, jitter_ms, seed),
        realtime=realtime,
        sdp=sdp,
        size=size,
        start_s=start,
        duration_s=duration,
        loop=loop,
        audio=audio == "opus",
        fec=fec,
        device=device,
    )
    with _ctrl_c_ends() as stop, _progress("sending") as progress:
        report = send_stream(config, progress=progress, stop=stop)
    _warn(report.warnings)
    if as_json:
        _print_json(report)
        return
    rows = {
        "frames": f"{report.frames:,} in {_clock(report.duration_s)}: {report.keyframes:,} sent, one in {report.n}",
        "manifold": report.manifold_id,
        "coder": report.coder,
    }
    _print_report(to, {**rows, "description": sdp} if sdp else rows)
    print()
    _print_table(
        ("lane", "packets", "kbit/s", "lost", "damaged", "repair", "receiver's loss", "jitter", "round trip"),
        [
            (
                lane.name,
                f"{lane.packets:,}",
                f"{lane.rate_kbps:.2f}" + (" (its floor)" if lane.at_floor else ""),
                f"{lane.channel_lost:,}",
                f"{lane.channel_damaged:,}",
                _bytes(lane.fec_bytes),
                "-" if lane.remote_loss is None else f"{lane.remote_loss:.1%}",
                _milliseconds(lane.remote_jitter_ms),
                _milliseconds(lane.round_trip_ms),
            )
            for lane in report.lanes.values()
        ],
        right=("packets", "kbit/s", "lost", "damaged", "repair", "receiver's loss", "jitter", "round trip"),
    )


@app.command()
def receive(
    source: Annotated[
        str,
        typer.Argument(
            metavar="rtp://HOST:PORT|FILE.sdp",
            help="Where to listen, or the description that mcode send --sdp wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[str, _output("OUT", "A .mp4 or .mkv, with the sound; a .y4m, or images as frames-%05d.png.")],
    duration: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            parser=_seconds("--duration", "the duration"),
            help="Receive this much; until the sender ends or Ctrl-C if left out.",
            show_default=False,
        ),
    ] = None,
    lane: Annotated[
        str,
        typer.Option(
            metavar="mcode|baseline",
            parser=_choice("--lane", "mcode", "baseline"),
            help="Which of the sender's pictures to write.",
        ),
    ] = "mcode",
    manifold: Annotated[
        str | None,
        typer.Option(
            "--manifold",
            "-m",
            metavar="NAME|FILE",
            help="The manifold it is sent with; looked up among the installed ones if left out.",
            show_default=False,
        ),
    ] = None,
    bind: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Listen on this address of this machine instead, as 0.0.0.0 for all of them.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write what mcode send sends to a file, without a window.

    Ends after --duration, with the sender, or by Ctrl-C; the file is whole in each case.
    """
    if output == "-":
        raise InputError("-o -: a live stream is written to a file; name one, as out.mp4")
    with _extras():
        from mcode.receive import receive_to_file

    with _ctrl_c_ends() as stop, _progress("receiving") as progress:
        report = receive_to_file(
            source,
            output,
            duration_s=duration,
            lane=lane,
            manifold=manifold,
            bind_to=bind,
            device=device,
            force=force,
            progress=progress,
            stop=stop,
        )
    if not report.frames:  # Ctrl-C before the first picture: no file
        raise KeyboardInterrupt
    _warn(report.warnings)
    if as_json:
        _print_json(report)
        return
    counts = report.counters
    rows = {
        "frames": f"{report.frames:,} of {report.width}x{report.height} in {_clock(report.duration_s)}",
        "lane": report.lane if report.n is None else f"{report.lane}, every {report.n}. frame, {report.coder}",
        "packets": f"{counts.received:,} ({_bytes(counts.received_bytes)}), {counts.lost:,} lost, "
        f"{counts.damaged + counts.damaged_headers:,} damaged, {counts.fec_recovered:,} rebuilt",
        "dropped": f"{counts.foreign + counts.not_rtp:,} foreign, {counts.duplicate:,} twice, {counts.late:,} too late",
        "jitter": _milliseconds(counts.jitter_ms),
    }
    _print_report(output, {**rows, "manifold": report.manifold_id} if report.manifold_id else rows)


@app.command()
def play(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="FILE.mcode, any video, camera:0, STREAM.sdp or rtp://HOST:PORT; an empty window if left out.",
            show_default=False,
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Show the built-in comparison; it needs no camera and no network.")
    ] = False,
    manifold: Annotated[
        str | None,
        typer.Option(
            "--manifold",
            "-m",
            metavar="NAME|FILE",
            help="The manifold to encode with live; general, or another that is installed, if left out.",
            show_default=False,
        ),
    ] = None,
    n: Annotated[
        int,
        typer.Option(
            "--n",
            "-n",
            metavar="N",
            parser=_whole("--n", "the keyframe interval in the player", 1, 32),
            help="Send every N-th frame; the receiver interpolates the others.",
        ),
    ] = 4,
    coder: Coder = "huffman",
    bit_error_rate: BitErrorRate = 0,
    loss: Loss = 0,
    seed: Seed = 0,
    device: Device = "auto",
    sound: Annotated[bool, typer.Option("--sound/--no-sound", help="Open the sound card, or leave it alone.")] = True,
    fullscreen: Annotated[bool, typer.Option("--fullscreen", help="Fill the screen.")] = False,
) -> None:
    """Play a file, a stream, a video or a camera in a window.

    Videos and cameras are encoded live: MCode stands beside H.264, one simulated channel damaging both. Keys: press ?.
    """
    arguments = ["--n", n, "--coder", coder, "--seed", seed, "--device", device]
    arguments += [f"--bit-error-rate={bit_error_rate}", f"--loss={loss}"]
    arguments += [f"--manifold={manifold}"] if manifold else []
    flags = {"--demo": demo, "--no-sound": not sound, "--fullscreen": fullscreen}
    arguments += [flag for flag, wanted in flags.items() if wanted]
    arguments += ["--", source] if source else []
    from importlib import import_module  # mypy checks mcode, and would follow the name into the window

    _check_display()
    with _extras():
        status = import_module("player.app").main([str(argument) for argument in arguments])
    raise typer.Exit(status)


def _check_display() -> None:
    """Refuse a display that is named and does not answer: Qt would abort over it, so another process tries it first."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) or os.environ.get("QT_QPA_PLATFORM"):
        return
    import subprocess

    trial = "from PyQt6.QtGui import QGuiApplication; QGuiApplication([])"
    tried = subprocess.run([sys.executable, "-c", trial], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if tried.returncode < 0:
        reason = tried.stderr.strip().partition("\n")[0].removeprefix("qt.qpa.plugin: ").removeprefix("qt.qpa.xcb: ")
        raise InputError(f"no window can be opened on this display ({reason}); `mcode decode` writes a video instead")


@contextmanager
def _extras() -> Iterator[None]:
    """What an extra would bring and is not there becomes one line that says how to get it."""
    try:
        yield
    except ImportError as missing:
        name = (missing.name or "").partition(".")[0]
        if name not in EXTRAS:
            raise
        if isinstance(missing, ModuleNotFoundError):
            wanted = "player,live" if EXTRAS[name] == "player" else "live"
            raise InputError(f'{name} is not installed: pip install "mcode[{wanted}]"') from missing
        raise InputError(f"{name} does not load on this machine: {missing}") from missing


@contextmanager
def _ctrl_c_ends() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that a stream ends in order; the second one interrupts."""
    stop = threading.Event()

    def end(signum: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, end)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


# What is printed: progress and warnings to stderr, reports to stdout.


@contextmanager
def _progress(label: str, unit: str = "frames") -> Iterator[Callable[[int, int | None], None] | None]:
    """A bar with frames/s and the time left, on stderr where that is a terminal; None, and quiet, elsewhere.

    Yields what the library calls with (frames done, frames in all or None); unit names another thing than frames.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None, count="starting")
        first: tuple[float, int] | None = None

        def update(done: int, total: int | None) -> None:
            nonlocal first
            now = time.monotonic()
            if first is None or done < first[1]:  # another pass over the frames has begun
                first = now, done
            rate = (done - first[1]) / (now - first[0]) if now > first[0] else 0.0
            of = f"/{total:,}" if total else ""
            bars.update(task, completed=done, total=total, count=f"{done:,}{of} {unit}  {rate:5.1f} {unit}/s")

        yield update


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"mcode: warning: {_one_line(warning)}", file=sys.stderr)


def _print_report(title: str, rows: dict[str, str]) -> None:
    """A title over two aligned columns."""
    width = max(map(len, rows))
    print(title)
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Aligned columns under their names, those named in right flush right."""
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    for line in (columns, *rows):
        cells = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        )
        print("  ".join(cells).rstrip())


def _print_rows(rows: Sequence[Any]) -> None:
    """Dataclasses of one kind as a table; fields that are None everywhere are left out."""
    names = [f.name for f in dataclasses.fields(rows[0]) if any(getattr(row, f.name) is not None for row in rows)]
    values = [[getattr(row, name) for name in names] for row in rows]
    right = [name for i, name in enumerate(names) if not any(isinstance(row[i], str) for row in values)]
    _print_table(names, [[_cell(value) for value in row] for row in values], right)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else str(value)


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    """value in JSON's types; what JSON has no number for (infinite PSNR) becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # numpy's scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _bytes(count: int) -> str:
    if count < 10_000:
        return f"{count:,} bytes"
    return f"{count / 1e6:.2f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"


def _rate(kbps: float) -> str:
    return f"{kbps:.2f} kbit/s" if kbps < 10 else f"{kbps:,.1f} kbit/s"


def _decibels(value: float | None) -> str:
    return "lossless," if value == math.inf else "unknown" if value is None or math.isnan(value) else f"{value:.2f} dB"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:05.2f}"
    return f"{minutes}:{rest:05.2f}" if minutes else f"{rest:.2f} s"


# The way in, and every way out.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (sys.argv's when None) and return the exit status. A fault in mcode itself is raised."""

    def terminate(signum: int, frame: Any) -> None:
        sys.exit(128 + signum)  # unwinds, so that temporary files are removed

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        status = app(args=arguments, prog_name="mcode", standalone_mode=False) or 0
    except UsageError as error:  # type: ignore[misc]
        return _usage(error)
    except McodeError as error:
        return _fail(_one_line(str(error)), 2)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:
        # the reader of our pipe has left; the flush at exit must not raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", 2 if error.errno in MENDABLE else 1)
    except MemoryError:
        return _fail("out of memory: try a smaller --size", 1)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return _fail("interrupted", 130) if status == 130 else status


def _usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help page
        print(error.format_message(), file=sys.stderr)
        return 2
    path = error.ctx.command_path if error.ctx else "mcode"
    return _fail(f"{error.format_message()}\nTry '{path} --help'.", 2)


def _fail(message: str, status: int) -> int:
    print(f"mcode: {'' if status == 130 else 'error: '}{message}", file=sys.stderr)
    return status


def _one_line(text: str) -> str:
    return " ".join(text.split())
