"""evaluate paper: every table and figure of the Generative Compression paper, made anew."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mcode.cli.apps import evaluate_app
from mcode.cli.options import Device, Json, Judges, output_option, some_of, whole
from mcode.cli.output import print_json, print_warnings

PARTS = ("figure3", "figure4a", "figure4b", "figure5", "figure6", "figure7", "talking-head")


@evaluate_app.command("paper", short_help='Remake the tables and figures of "Generative Compression" (2017).')
def paper_(
    data: Annotated[
        str,
        typer.Option(metavar="DIR", help="The folder with small/, kth/ and grid_s1/.", show_default=False),
    ],
    output: Annotated[str, output_option("DIR", "Where tables, plots and index.html go.")] = "results",
    only: Annotated[
        str,
        typer.Option(
            metavar="PART,...",
            parser=some_of("--only", "part", *PARTS),
            help=f"Make only these parts: {', '.join(PARTS)}.",
            show_default=False,
        ),
    ] = ",".join(PARTS),
    manifolds: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Manifolds trained from configs/paper/, before those installed.", show_default=False),
    ] = None,
    perceptual: Judges = None,
    pictures: Annotated[
        int,
        typer.Option(
            metavar="COUNT",
            parser=whole("--pictures", "the number of test pictures", 2, 100_000),
            help="Use at most so many test pictures of each set.",
        ),
    ] = 1000,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace files that evaluate paper did not write.")] = False,
    as_json: Json = False,
) -> None:
    """Remake the tables and figures of "Generative Compression" (2017), the paper's numbers beside ours."""
    from mcode.evaluation.features import WEIGHTS_VARIABLE
    from mcode.evaluation.paper import evaluate_paper

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    report = evaluate_paper(
        data,
        output,
        only=tuple(only.split(",")),
        manifolds=manifolds,
        perceptual=perceptual or os.environ.get(WEIGHTS_VARIABLE) or None,
        device=device,
        most=pictures,
        force=force,
        say=say,
    )
    print_warnings([f"{name}: not found; train it from configs/paper/{name}.toml" for name in report.missing])
    if as_json:
        print_json(report)
    else:
        print(report.page)
