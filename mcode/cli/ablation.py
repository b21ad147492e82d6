"""evaluate ablation: trained models of one family side by side."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mcode.cli.apps import evaluate_app
from mcode.cli.options import Device, Force, Json, Judges, output_option
from mcode.cli.output import plain, print_json, print_table, print_warnings, progress_bar


@evaluate_app.command("ablation", short_help="Compare trainings of the HiFiC networks.")
def ablation(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder of images.", show_default=False)],
    manifolds: Annotated[
        str,
        typer.Option("--manifolds", "-m", metavar="NAME|FILE,...", help="The models, parted by commas.", show_default=False),
    ],
    output: Annotated[str, output_option("OUT", "Folder for the report; what is measured is kept in OUT/cache.")],
    perceptual: Judges = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compare trainings of the HiFiC networks: the paper's ablations, and the sweep over beta.

    Writes OUT/ablation.json, ablation.md and sweep.png. What distinguishes the models is read from their cards. Train a
    whole family, at full size or small, with scripts/ablation.py and configs/hific.
    """
    from mcode.evaluation.ablation import evaluate_ablation, seeds_table, table
    from mcode.evaluation.features import WEIGHTS_VARIABLE

    with progress_bar("measuring", "images") as progress:
        report = evaluate_ablation(
            folder,
            [name.strip() for name in manifolds.split(",") if name.strip()],
            output,
            perceptual=perceptual or os.environ.get(WEIGHTS_VARIABLE) or None,
            device=device,
            force=force,
            progress=progress,
        )
    print_warnings(report.warnings)
    if as_json:
        print_json(plain(report))
        return
    columns, lines = table(report)
    print_table(columns, lines, right=columns[1:])
    columns, lines = seeds_table(report)
    if lines:
        print("\nover seeds: the mean, and Δ between the highest and the lowest")
        print_table(columns, lines, right=columns[1:])
    print(f"\n{report.images} images, {report.measured} pictures measured now, the others kept from before")
    for file in report.files:
        print(f"  {file}")
