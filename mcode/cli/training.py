"""adapt and train: manifolds made."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated

import typer

from mcode.cli.apps import app
from mcode.cli.coding import show_manifold
from mcode.cli.options import SMALL, Device, Force, Json, Size, one_of, output_option, seconds_of, size_of, whole
from mcode.cli.output import bit_rate, byte_count, counted, decibels, print_json, print_report, print_warnings, progress_bar

MOST_DEAD = 0.12
"""Share of hidden channels that may be shut before `train` warns. The last training of general had up to 0.07; one that lost
what it had, 0.15 and more."""


@app.command()
def adapt(
    videos: Annotated[
        list[str], typer.Argument(metavar="VIDEO...", help="Footage of the scene or face to learn.", show_default=False)
    ],
    output: Annotated[str, output_option("OUT.safetensors", "The manifold to write.")],
    kind: Annotated[
        str,
        typer.Option(metavar="linear", parser=one_of("--kind", "linear"), help="What to learn: principal components."),
    ] = "linear",
    m: Annotated[
        int,
        typer.Option(
            "--m",
            metavar="M",
            parser=whole("--m", "the number of coordinates", 1, 4096),
            help="Coordinates of a frame.",
        ),
    ] = 50,
    size: Annotated[
        Size | None,
        typer.Option(
            metavar="WxH|native",
            parser=size_of("--size"),
            help="Frame size to learn; the middle is cut to its shape.  [default: 128x128]",
            show_default=False,
        ),
    ] = SMALL,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            parser=seconds_of("--seconds", "the length to learn from"),
            help="Learn from this much of each video; all of it if left out.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Learn a manifold of one scene or face from footage, in seconds."""
    from mcode.training.adapt import adapt_linear
    from mcode.video import probe

    if size is None:
        first = probe(videos[0])
        size = Size(first.width, first.height)
    with progress_bar("learning") as progress:
        report = adapt_linear(videos, output, m=m, size=size, seconds=seconds, force=force, progress=progress)
    if as_json:
        print_json(report)
        return
    print_report(
        output,
        {
            "manifold": f"{kind} {report.manifold_id}, {report.m} coordinates",
            "learned from": counted(report.frames, "frame"),
            "quality": f"{decibels(report.psnr_db)} PSNR ({report.quantised_loss_db:.2f} dB lost by storing it small)",
            "rate": f"about {bit_rate(report.kbps_estimate)}",
            "file": byte_count(report.file_bytes),
            "use it": f"mcode encode VIDEO -o OUT.mcode --manifold {shlex.quote(output)}",
        },
    )


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG.toml", help="What to train: see configs/.", show_default=False)],
    data: Annotated[str, typer.Option(metavar="DIR", help="Folder of training videos or images.", show_default=False)],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder for checkpoints and the manifold.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    perceptual: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Weights of the feature network in the loss, or a folder of them; else $MCODE_PERCEPTUAL. For ncode's "
            "dcgan also any network of torch.export (.pt2).",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a manifold from a configuration."""
    from mcode.manifold import read_info
    from mcode.training.train import train

    warned = False

    def report(row: dict[str, float]) -> None:
        nonlocal warned
        print("  ".join(f"{key} {value:g}" for key, value in row.items()), file=sys.stderr)
        if not warned and row.get("dead_share", 0) > MOST_DEAD:
            warned = True
            remedy = "stop, and resume with a lower learning_rate, or with revive_every"
            print_warnings(
                [f"{row['dead_share']:.0%} of the hidden channels were shut for a whole batch, and learn nothing; {remedy}"]
            )

    path = train(config, data, out, resume=resume, device=device, perceptual=perceptual, report=report)
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun the first process writes and speaks
    if as_json:
        print_json({"path": path, "manifold": read_info(path)})
    else:
        show_manifold(str(path), as_json=False)
