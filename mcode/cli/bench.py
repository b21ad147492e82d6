"""bench: how fast it is, beside x264 and SVT-AV1."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mcode.cli.apps import app
from mcode.cli.options import Device, Interval, Json, seconds_of, size_of, whole
from mcode.cli.output import print_json, print_table, print_warnings, progress_bar
from mcode.errors import InputError

NAMED_SIZES = {"360p": (640, 360), "720p": (1280, 720), "1080p": (1920, 1080)}
MOST_SIDE, MOST_PIXELS = 8192, 8192 * 4096
"""Less than testclip renders: the camera pans over a picture that is wider by two pixels a frame."""


def _sizes(text: Any) -> str:
    """Names and WIDTHxHEIGHT, parted by commas, as WIDTHxHEIGHT."""
    found = []
    for part in str(text).split(","):
        width, height = NAMED_SIZES.get(part.strip()) or size_of("--sizes", native=False)(part.strip()) or (0, 0)
        if min(width, height) < 32:
            raise InputError(f"--sizes {text}: {part} is too small; 32 pixels a side at least")
        if max(width, height) > MOST_SIDE or width * height > MOST_PIXELS:
            most = f"{MOST_SIDE} pixels a side and {MOST_PIXELS // 1_000_000} million in all"
            raise InputError(f"--sizes {text}: {part} is too large; {most} at most")
        found.append(f"{width}x{height}")
    return ",".join(dict.fromkeys(found))


@app.command()
def bench(
    manifold: Annotated[
        list[str] | None,
        typer.Option(
            "--manifold",
            "-m",
            metavar="NAME|FILE",
            help="Measure this manifold; can be given again. All that are installed if left out.",
            show_default=False,
        ),
    ] = None,
    sizes: Annotated[
        str,
        typer.Option(
            metavar="SIZE,...",
            parser=_sizes,
            help="360p, 720p, 1080p or WIDTHxHEIGHT; manifolds of one fixed size are measured at theirs.",
        ),
    ] = "360p,720p,1080p",
    seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            parser=seconds_of("--seconds", "the time for each size"),
            help="Measure each size for so long, but three rounds at least.",
        ),
    ] = 10.0,
    frames: Annotated[
        int,
        typer.Option(
            metavar="COUNT",
            parser=whole("--frames", "the clip's length in frames", 2, 1000),
            help="Length of the clip which is encoded and decoded.",
        ),
    ] = 33,
    n: Interval = 4,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Measure the networks through torch.compile too; with CUDA, as graphs too.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peak memory, in processes of their own.")
    ] = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure speed and memory beside x264 and SVT-AV1 on this machine.

    All take turns, so that ratios hold on a busy machine too.
    """
    from mcode.evaluation.bench import SIDE_MIN
    from mcode.evaluation.bench import bench as measure
    from mcode.manifold import list_manifolds

    with progress_bar("measuring", "samples") as progress:
        report = measure(
            manifold or [str(info.path) for info in list_manifolds() if min(info.frame_size or (SIDE_MIN,)) >= SIDE_MIN],
            device=device,
            sizes=[tuple(map(int, size.split("x"))) for size in sizes.split(",")],  # type: ignore[misc]
            seconds=seconds,
            frames=frames,
            n=n,
            compiled=compiled,
            memory=memory,
            progress=progress,
        )
    print_warnings(report.notes)
    if as_json:
        print_json(report)
    else:
        _print(report)


def _print(report: Any) -> None:
    from mcode.evaluation.bench import DOUBLING_LIMIT

    m = report.machine
    load = "" if m.load is None else f", load {m.load:.1f} at the start"
    print(f"{m.processor}, {m.cores} cores, {m.memory_gb:.0f} GB{f', {m.gpu}' if m.gpu else ''}{load}")
    kinds = set(report.precisions.values())
    alike = f" {m.precision}" if len(kinds) == 1 else ""
    print(f"{m.device}{alike}, {m.threads} threads, torch {m.torch}, PyAV {m.av}, Python {m.python}, {m.system}")
    if len(kinds) > 1:
        print(", ".join(f"{name} {precision}" for name, precision in report.precisions.items()))
    columns = ("codec", "step", "frames/s", "quartiles", "ms", "ms/MP", "kbit/s", "x264", "AV1", "peak MB")
    peaks = {(p.codec, p.width, p.height): p for p in report.memory}
    for size in dict.fromkeys((row.width, row.height) for row in report.rows):
        rows = [row for row in report.rows if (row.width, row.height) == size]
        print(f"\n{size[0]}x{size[1]}, {len(rows[0].samples_s)} rounds")
        lines = []
        for row in rows:
            peak = peaks.get((row.codec, *size)) if row.step == "encode" else None
            lines.append(
                (
                    row.codec,
                    row.step,
                    _short(row.fps),
                    f"{_short(row.fps_low)}-{_short(row.fps_high)}",
                    _short(row.ms),
                    _short(row.ms_per_megapixel),
                    "" if row.rate_kbps is None else _short(row.rate_kbps),
                    *(f"{row.faster[name]:.2f}x" if name in row.faster else "" for name in ("h264", "av1")),
                    "" if peak is None else f"{peak.peak_mb:,.0f}",
                )
            )
        print_table(columns, lines, right=columns[2:])
        for codec in dict.fromkeys(row.codec for row in rows if row.share is not None):
            shares = [f"{row.step} {row.share:.0%}" for row in rows if row.codec == codec and row.share is not None]
            print(f"{codec}, of a keyframe's analysis and coding: {', '.join(shares)}")
    for row in report.scaling:
        ends = " to ".join(f"{w}x{h}" for w, h in (row.sizes[0], row.sizes[-1]))
        steps = ", ".join(f"{factor:.2f}" for factor in row.factors)
        held = "within" if row.factor <= DOUBLING_LIMIT else "over"
        print(f"\n{row.codec}, {row.step}, {ends}: twice the pixels cost {row.factor:.2f} times the time", end="")
        print(f"\n  ({held} {DOUBLING_LIMIT}; from size to size: {steps})", end="")
    print("\n" if report.scaling else "")
    print(f"Frames are keyframes for analysis and the coders: one in {report.n} of the video's. encode and decode are whole,")
    print("RGB frames in memory to bytes and back, by huffman if not with range. x264, AV1: how many times faster than these,")
    print("in the same rounds.")
    print("peak MB: of a process that encodes and decodes, libraries included.")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
