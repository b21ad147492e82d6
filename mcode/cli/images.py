"""evaluate images, manifolds import and manifolds fetch: pictures of any size, and networks trained elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from mcode.cli.apps import manifolds_app
from mcode.cli.options import Force, Json, one_of, output_option
from mcode.cli.output import byte_count, print_json, print_report, progress_bar


@manifolds_app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE.pt", help="The checkpoint.", show_default=False)],
    format: Annotated[
        str,
        typer.Option(metavar="hific-pytorch", parser=one_of("--format", "hific-pytorch"), help="Whose checkpoint it is."),
    ] = "hific-pytorch",
    output: Annotated[
        str | None, output_option("OUT.safetensors", "The manifold to write; NAME in the user's folder if left out.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The manifold's name; that of the output or of the file if left out.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Fit the code tables to the pictures and videos in this folder; to scenes drawn by MCode if left out.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a manifold of a network trained elsewhere.

    hific-pytorch: a checkpoint (low, med or high) of the PyTorch port of HiFiC. The README of
    https://github.com/Justin-Tan/high-fidelity-generative-compression links them; nothing is downloaded here. A file
    that would run code is refused.
    """
    from mcode.importing import import_hific_pytorch

    with progress_bar("fitting code tables", "pictures") as progress:
        report = import_hific_pytorch(file, output, name=name, data=data, force=force, progress=progress)
    if as_json:
        print_json(report)
        return
    print_report(
        report.path,
        {
            "manifold": f"hific {report.manifold_id}, {report.parameters:,} parameters in half precision",
            "code tables": f"fitted to {report.tables_from}, about {report.bits_per_pixel:.2f} bit/pixel there",
            "file": byte_count(report.file_bytes),
            "use it": f"mcode encode IMAGE -o OUT.mcode --manifold {report.path if output else report.name}",
        },
    )


@manifolds_app.command()
def fetch(
    source: Annotated[
        str, typer.Argument(metavar="NAME|URL", help="A manifold that MCode knows, or an http(s) URL.", show_default=False)
    ],
    sha256: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="Refuse the file unless this is its SHA-256.", show_default=False),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Download a manifold into the user's folder and check it."""
    from mcode.fetch import fetch_manifold

    with progress_bar("fetching", "bytes") as progress:
        report = fetch_manifold(source, sha256=sha256, force=force, progress=progress)
    if as_json:
        print_json(report)
        return
    print_report(
        report.path,
        {
            "manifold": f"{report.manifold.name} {report.manifold.id}, {report.manifold.kind}",
            "SHA-256": report.sha256 + (", as given" if report.checked else ""),
            "file": byte_count(report.file_bytes),
            "use it": f"mcode encode VIDEO -o OUT.mcode --manifold {report.manifold.path.stem}",
        },
    )
