"""compare and evaluate: codecs side by side."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mcode.cli.apps import app, evaluate_app
from mcode.cli.extras import extras
from mcode.cli.options import (
    CODECS,
    LANES,
    Adaptive,
    Bundle,
    CodedSize,
    Coder,
    Device,
    FirstSeconds,
    Force,
    Interval,
    Json,
    Judges,
    Manifold,
    Quality,
    Rate,
    Start,
    Video,
    output_option,
    some_of,
    whole,
)
from mcode.cli.output import counted, print_json, print_rows, print_table, print_warnings, progress_bar


@app.command()
def compare(
    input: Video,
    output: Annotated[
        str, output_option("REPORT.html", "The page to write; REPORT.png and REPORT-side-by-side.mp4 go beside it.")
    ],
    against: Annotated[
        str,
        typer.Option(
            metavar="CODEC,...",
            parser=some_of("--against", "codec", *CODECS),
            help=f"Codecs to compare with, from {', '.join(CODECS)}.",
        ),
    ] = ",".join(CODECS),
    n: Interval = 4,
    adaptive: Adaptive = False,
    rate: Rate = None,
    manifold: Manifold = "general",
    coder: Coder = "huffman",
    quality: Quality = None,
    device: Device = "auto",
    size: CodedSize = None,
    start: Start = 0,
    duration: FirstSeconds = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compare MCode with other codecs at equal rate and equal PSNR."""
    from mcode.evaluation.compare import compare as compare_codecs

    with progress_bar("comparing") as progress:
        report = compare_codecs(
            input,
            output,
            against=tuple(against.split(",")),
            n=n,
            adaptive=adaptive,
            rate_kbps=rate,
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
    print_warnings(report.warnings)
    if as_json:
        print_json(report)
        return
    unit = "kbit/s" if report.rows[0].bits_per_pixel is None else "bit/pixel"
    print_table(
        ("codec", "at", "setting", unit, "PSNR dB", "SSIM", "bits"),
        [
            (
                row.codec,
                "" if row.at == "mcode" else row.at + (" (its floor)" if row.floor else ""),
                row.setting,
                f"{row.rate_kbps:.2f}" if row.bits_per_pixel is None else f"{row.bits_per_pixel:.3f}",
                f"{row.psnr_db:.2f}",
                "" if row.ssim is None else f"{row.ssim:.4f}",
                f"{row.bits:.1f}x",
            )
            for row in report.rows
        ],
        right=(unit, "PSNR dB", "SSIM", "bits"),
    )
    print(f"\n{counted(report.frames, 'frame')} at {report.width}x{report.height}")
    for name, path in report.files.items():
        print(f"  {name:<8} {path}")


@evaluate_app.command("stills")
def stills_(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder of images.", show_default=False)],
    manifold: Manifold = "general",
    perceptual: Judges = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure MCode beside JPEG, JPEG 2000, WebP, H.265 and AV1 on images."""
    from mcode.evaluation import stills
    from mcode.evaluation.features import WEIGHTS_VARIABLE, FeatureDistances
    from mcode.manifold import load

    images = stills.read_images(folder)
    others = stills.standard_codecs()
    stills.check_sizes(images, others)
    model = load(manifold, device)
    codecs = [stills.mcode_still(model, quality) for quality in range(1, model.qualities + 1)]
    given = perceptual or os.environ.get(WEIGHTS_VARIABLE)
    distances = FeatureDistances(given, str(model.device)) if given else None
    with progress_bar("measuring", "images") as progress:
        rows = stills.rd_table(images, [*codecs, *others], distances, progress)
    if as_json:
        print_json({"manifold": model.name, "manifold_id": model.id, "rows": rows})
    else:
        print_rows(rows)


@evaluate_app.command("channel")
def channel_(
    input: Video,
    output: Annotated[
        str | None,
        output_option("FOLDER", "Where to write the report, the curves and the pictures; only the table if left out."),
    ] = None,
    manifold: Manifold = "general",
    n: Interval = 4,
    adaptive: Adaptive = False,
    bundle: Bundle = 1,
    quality: Quality = None,
    lanes: Annotated[
        str | None,
        typer.Option(
            metavar="LANE,...",
            parser=some_of("--lanes", "lane", *LANES),
            help=f"What to send: MCode with a coder, or an ordinary codec; from {', '.join(LANES)}. All if left out, but for "
            "range where the manifold has no hyperprior.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="COUNT",
            parser=whole("--seeds", "the number of seeds", 1, 1000),
            help="Damage each lane so many times, and take the mean.",
        ),
    ] = 5,
    size: CodedSize = None,
    start: Start = 0,
    duration: FirstSeconds = None,
    expose_headers: Annotated[
        bool,
        typer.Option("--expose-headers", help="Let bit errors hit the packets' headers, too; most such packets are lost."),
    ] = False,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure MCode beside H.264 and H.265 on a noisy channel.

    All lanes at one rate, or at their floor; bit errors from 0 to 5e-2, which spare the headers, then losses from 0 to 50 %.
    """
    with extras():
        from mcode.evaluation.channel import LABELS, channel_text, evaluate_channel

    with progress_bar("measuring", "runs") as progress:
        report = evaluate_channel(
            input,
            output,
            manifold=manifold,
            n=n,
            adaptive=adaptive,
            bundle=bundle,
            quality=quality,
            lanes=tuple(lanes.split(",")) if lanes else None,
            seeds=seeds,
            size=size,
            start_s=start,
            duration_s=duration,
            expose_headers=expose_headers,
            device=device,
            force=force,
            progress=progress,
        )
    print_warnings(report.warnings)
    if as_json:
        print_json(report)
        return
    names = [rate.lane for rate in report.rates]
    found = {(row.lane, row.bit_error_rate, row.loss): row for row in report.rows}
    conditions = dict.fromkeys((row.bit_error_rate, row.loss) for row in report.rows)
    table = [
        ("kbit/s", *(f"{rate.rate_kbps:.2f}" + (" (its floor)" if rate.at_floor else "") for rate in report.rates)),
        *(
            (
                channel_text(errors, loss),
                *(f"{row.psnr_db:.2f} ({row.ssim:.3f})" for row in (found[name, errors, loss] for name in names)),
            )
            for errors, loss in conditions
        ),
    ]
    print_table(("PSNR dB (SSIM)", *(LABELS[name] for name in names)), table, right=[LABELS[name] for name in names])
    print(f"\n{counted(report.frames, 'frame')} at {report.width}x{report.height}, {report.seeds} seeds")
    for path in report.files:
        print(f"  {path}")
