"""evaluate images, manifolds import and manifolds fetch: pictures of any size, and networks trained elsewhere."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from mcode.cli.apps import evaluate_app, manifolds_app
from mcode.cli.options import Coder, Device, Force, Json, Judges, Refine, RefineBy, one_of, output_option, some_of, whole
from mcode.cli.output import byte_count, plain, print_json, print_report, print_table, print_warnings, progress_bar
from mcode.errors import InputError
from mcode.packet import MOST_QUALITIES

IMAGE_CODECS = ("mcode", "jpeg", "jpeg2000", "webp", "h265", "av1")


@evaluate_app.command("images")
def images_(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder of images.", show_default=False)],
    output: Annotated[str, output_option("OUT", "Folder for the report; what is measured is kept in OUT/cache.")],
    codecs: Annotated[
        str,
        typer.Option(
            metavar="CODEC,...",
            parser=some_of("--codecs", "codec", *IMAGE_CODECS),
            help=f"What to measure, from {', '.join(IMAGE_CODECS)}; h265 is what BD-rates compare with.",
        ),
    ] = ",".join(IMAGE_CODECS),
    manifold: Annotated[
        str,
        typer.Option(
            "--manifold",
            "-m",
            metavar="NAME|FILE,...",
            help="MCode's manifolds, installed ones or files, a curve each; CURVE=A+B+C makes one curve of several, which "
            "were trained for a rate each, from low to high.",
        ),
    ] = "general",
    qualities: Annotated[
        str | None,
        typer.Option(metavar="Q,...", help="Qualities of each manifold; all if left out.", show_default=False),
    ] = None,
    coder: Coder = "huffman",
    refine: Refine = 0,
    refine_by: RefineBy = "eye",
    perceptual: Judges = None,
    fetch_weights: Annotated[
        bool, typer.Option("--fetch-weights", help="Download what LPIPS and FID need (330 MB) into that folder first.")
    ] = False,
    crops: Annotated[
        int,
        typer.Option(
            metavar="COUNT", parser=whole("--crops", "the number of pictures", 0, 1000), help="Pictures to show close up."
        ),
    ] = 4,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw rate against distortion and perception of MCode and picture codecs.

    Writes OUT/index.html, crops.html, a PNG for each metric and results.json. An evaluation that was interrupted goes on
    where it stopped. PSNR, SSIM and MS-SSIM need no weights; VGG19, MobileNet, SqueezeNet, NIQE, LPIPS and FID do. Only
    FID of Inception's features is called FID.
    """
    from mcode.evaluation.features import WEIGHTS_VARIABLE
    from mcode.evaluation.images import ANCHOR, evaluate_images, to_json
    from mcode.evaluation.images_report import bd_text, value_text

    parse = whole("--qualities", "a quality", 1, MOST_QUALITIES)
    wanted = tuple(dict.fromkeys(parse(text.strip()) for text in qualities.split(","))) if qualities is not None else None
    weights = perceptual or os.environ.get(WEIGHTS_VARIABLE) or None
    if fetch_weights:
        from mcode.evaluation.judges import fetch_standard_weights

        if weights is None:
            raise InputError("--fetch-weights: give the folder for them with --perceptual")
        with progress_bar("fetching weights", "bytes") as progress:
            fetch_standard_weights(weights, progress)
    with progress_bar("measuring", "images") as progress:
        report = evaluate_images(
            folder,
            output,
            codecs=tuple(codecs.split(",")),
            manifolds=tuple(dict.fromkeys(name.strip() for name in manifold.split(","))),
            qualities=wanted,
            perceptual=weights,
            coder=coder,
            refine=refine,
            refine_by=refine_by,
            crops=crops,
            device=device,
            force=force,
            progress=progress,
        )
    print_warnings(report.warnings)
    if as_json:
        print_json(plain(to_json(report)) | {"files": report.files})
        return
    labels = [metric.label for metric in report.metrics]
    print_table(
        ("codec", "setting", "bit/pixel", *labels),
        [
            (row.codec, row.setting, f"{row.bpp:.3f}", *(value_text(m.key, row.scores.get(m.key)) for m in report.metrics))
            for row in report.rows
        ],
        right=("bit/pixel", *labels),
    )
    by_codec: dict[str, list[str]] = {}
    for row in report.bd_rates:
        by_codec.setdefault(row.codec, []).append(bd_text(row))
    if by_codec:
        print(f"\nbits for the same value, against {ANCHOR}")
        print_table(("codec", *labels), [(name, *cells) for name, cells in by_codec.items()], right=labels)
    print(f"\n{report.images} images, {report.measured} of {report.total} measured now, the others kept from before")
    print(f"  {report.files[0]}")


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
    float32: Annotated[
        bool,
        typer.Option(
            "--float32", help="Keep the weights as they are and compute in float32: twice the file, slower, the port's numbers."
        ),
    ] = False,
    range_: Annotated[
        bool,
        typer.Option("--range", help="Train what the coder range needs, too, on --data: some minutes, fewer bits."),
    ] = False,
    range_steps: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            parser=whole("--range-steps", "the length of the training", 1, 1_000_000),
            help="Length of that training; 2000 if left out.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a manifold of a network trained elsewhere.

    hific-pytorch: a checkpoint (low, med or high) of the PyTorch port of HiFiC. The README of
    https://github.com/Justin-Tan/high-fidelity-generative-compression links them (Zenodo record 4026003, some 700 MB each);
    nothing is downloaded here. A file that would run code is refused.
    """
    from mcode.importing import RANGE_STEPS, import_hific_pytorch
    from mcode.latents import choose_device

    steps = range_steps or RANGE_STEPS if range_ or range_steps else None
    where = choose_device(device).type
    with progress_bar("fitting codes", "steps") as progress:
        report = import_hific_pytorch(
            file,
            output,
            name=name,
            data=data,
            force=force,
            float32=float32,
            range_steps=steps,
            device=where,
            progress=progress,
        )
    if as_json:
        print_json(report)
        return
    kept = "float32" if float32 else "half precision"
    print_report(
        report.path,
        {
            "manifold": f"hific {report.manifold_id}, {report.parameters:,} parameters in {kept}",
            "code tables": f"fitted to {report.tables_from}, about {report.bits_per_pixel:.2f} bit/pixel there",
            "coders": ", ".join(report.coders),
            "file": byte_count(report.file_bytes),
            "use it": f"mcode encode IMAGE -o OUT.mcode --manifold {shlex.quote(report.path if output else report.name)}",
        },
    )


@manifolds_app.command()
def fetch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NAME|URL",
            help="The http(s) URL of a manifold, or the name of one that this version pins: none so far.",
            show_default=False,
        ),
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
            "use it": f"mcode encode VIDEO -o OUT.mcode --manifold {shlex.quote(report.manifold.path.stem)}",
        },
    )
