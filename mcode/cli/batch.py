"""batch: a library of videos at once, by many processes."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from mcode.cli.apps import app
from mcode.cli.extras import extras
from mcode.cli.options import (
    Adaptive,
    Audio,
    CodedSize,
    Coder,
    Device,
    Force,
    Interval,
    Json,
    Manifold,
    Quality,
    Rate,
    Refine,
    RefineBy,
    RefineWeights,
    Refresh,
    output_option,
    seconds_of,
    whole,
)
from mcode.cli.output import bit_rate, decibels, one_line, plain, print_json, print_table, print_warnings, progress_bar
from mcode.errors import InputError


def _segment(text: Any) -> float:
    value = seconds_of("--segment", "the length of a segment")(text)
    if value < 1:
        raise InputError(f"--segment {text}: the length of a segment is 1 second or more, as 60 or 1:30")
    return value


def _workers(text: Any) -> int:
    return 0 if text in ("auto", 0) else whole("--workers", "the number of processes", 1, 4096)(text)


@app.command()
def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Videos, images, and folders of them: a file a/b/c.mp4 in the folder a becomes DIR/b/c.mcode.",
            show_default=False,
        ),
    ],
    output: Annotated[str, output_option("DIR", "The folder for the .mcode files; it is made.")],
    n: Interval = 4,
    manifold: Manifold = "general",
    coder: Coder = "huffman",
    quality: Quality = None,
    refresh: Refresh = 10,
    adaptive: Adaptive = False,
    rate: Rate = None,
    device: Device = "auto",
    size: CodedSize = None,
    audio: Audio = "copy",
    refine: Refine = 0,
    refine_by: RefineBy = "eye",
    perceptual: RefineWeights = None,
    segment: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", parser=_segment, help="A longer video is cut so often; its parts are encoded side by side."
        ),
    ] = 60,
    workers: Annotated[
        int,
        typer.Option(
            metavar="auto|COUNT",
            parser=_workers,
            help="Processes that encode. auto: one for each GPU, without one for each processor core.",
            show_default="auto",
        ),
    ] = 0,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="HOST:PORT of a Ray cluster's head, or auto. This machine must be one of it; MCode, the "
            "manifold and all files must lie at the same paths on all. For a cluster with tokens set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN. Ray is started for this machine alone if left out.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Encode many videos and images at once, by several processes.

    Outputs that exist are left alone, so the same command goes on where it was stopped. Exits with 2 where an input failed; the
    others are encoded all the same. Needs the extra cluster (Ray).
    """
    from mcode.batch import FileReport, RayWorkers, Settings, encode_files

    settings = Settings(
        manifold=manifold,
        n=n,
        coder=coder,
        quality=quality,
        refresh_s=refresh,
        adaptive=adaptive,
        rate_kbps=rate,
        device=device,
        size=size,
        audio=audio,
        refine=refine,
        refine_by=refine_by,
        perceptual=perceptual,
    )

    def tell(file: FileReport) -> None:
        name = str(file.input)
        if file.trace:
            print(file.trace, file=sys.stderr)
        if file.error:
            print(
                f"mcode: error: {one_line(file.error if file.error.startswith(name) else f'{name}: {file.error}')}",
                file=sys.stderr,
            )
        if file.report:
            print_warnings([text if text.startswith(name) else f"{name}: {text}" for text in file.report.warnings])

    with extras():
        pool = RayWorkers(settings, count=workers or None, cluster=cluster)
    with pool as processes, progress_bar("encoding") as progress:
        report = encode_files(inputs, output, settings, processes, segment_s=segment, force=force, progress=progress, tell=tell)
    print_warnings(report.notes)
    counts = {state: report.count(state) for state in ("encoded", "skipped", "failed")}
    if as_json:
        rows = []
        for file in report.files:
            row = {"input": file.input, "output": file.output, "state": file.state, "error": file.error}
            rows.append(row | (plain(file.report) if file.report else {}))
        print_json({"files": rows, **counts, "seconds": report.seconds})
    else:
        print_table(
            ("file", "frames", "rate", "PSNR", "fit", "state"),
            [_row(file) for file in report.files],
            right=("frames", "rate", "PSNR", "fit"),
        )
    if counts["failed"]:
        raise typer.Exit(2)


def _row(file: Any) -> tuple[str, ...]:
    if file.report is None:
        return str(file.output), "", "", "", "", file.state
    report = file.report
    rate, psnr = bit_rate(report.rate_kbps), decibels(report.psnr_db)
    return str(file.output), f"{report.frames:,}", rate, psnr, f"{report.fit:.2f}", file.state
