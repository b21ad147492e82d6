"""study prepare, study run, study score: what people prefer."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from mcode.cli.apps import app
from mcode.cli.extras import check_display, extras
from mcode.cli.options import Coder, Device, Force, Json, Refine, RefineBy, RefineWeights, Seed, one_of, output_option, whole
from mcode.cli.output import print_json, print_report, print_table, print_warnings, progress_bar
from mcode.errors import InputError

study_app = typer.Typer(help="Ask people which of two codecs is closer to the original.", no_args_is_help=True)
app.add_typer(study_app, name="study")


@study_app.command()
def prepare(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="A folder of pictures.", show_default=False)],
    output: Annotated[str, output_option("DIR", "The study's folder to make: one folder for each method, and the original.")],
    codecs: Annotated[
        str,
        typer.Option(
            metavar="CODEC:SETTING,...",
            help="Two methods or more, as mcode:q3, jpeg:10, h265:40 (CRF), h265@0.2 (bit/pixel), "
            "jpeg@1.5x (times the first method's bits on each picture) or jpeg@1.5x:METHOD (times another's before it). "
            "mcode/NAME:q3 is of one of several manifolds, mcode/A+B@1x of that with the fewest bits; mcode-unrefined is what "
            "--refine spares. Codecs: mcode, jpeg, jpeg2000, webp, h264, h265, av1.",
            show_default=False,
        ),
    ],
    manifold: Annotated[
        str,
        typer.Option(
            "--manifold", "-m", metavar="NAME|FILE,...", help="MCode's manifolds, installed ones or files; mcode is the first."
        ),
    ] = "general",
    coder: Coder = "huffman",
    refine: Refine = 0,
    refine_by: RefineBy = "eye",
    perceptual: RefineWeights = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make the folder of a study: every picture under every method.

    At a rate, each picture gets the cheapest setting with at least that many bits. DIR/study.json notes each method's
    manifolds, coder and refinement, and settings, bytes and bit/pixel of every picture.
    """
    from mcode.evaluation import study

    methods = study.parse_methods(codecs.split(","))
    with progress_bar("coding", "pictures") as progress:
        prepared = study.prepare(
            images,
            output,
            methods,
            manifolds=tuple(dict.fromkeys(name.strip() for name in manifold.split(","))),
            coder=coder,
            refine=refine,
            refine_by=refine_by,
            perceptual=perceptual,
            device=device,
            force=force,
            progress=progress,
        )
    print_warnings(
        [
            f"{each.method}: {prepared.pictures - each.reached} of {prepared.pictures} pictures have fewer bits than wanted, "
            f"at {each.codec}'s best setting"
            for each in prepared.methods
            if each.reached < prepared.pictures
        ]
        + [
            f"{each.method}: {each.at_floor} of {prepared.pictures} pictures have over {study.FLOOR_SHARE:.0%} more bits than "
            f"wanted, at {each.codec}'s cheapest setting; a higher rate or quality of what it is compared with makes them equal"
            for each in prepared.methods
            if each.at_floor
        ]
    )
    if as_json:
        print_json(prepared)
        return
    print(f"{prepared.folder}: {prepared.pictures} pictures")
    print_table(
        ("method", "manifold", "coder", "setting", "bit/pixel", "PSNR"),
        [
            (
                each.method,
                _counted(each.manifolds),
                (each.coder or "-") + (f", refined {each.refine} by {each.refine_by}" if each.refine else ""),
                each.setting,
                f"{each.bpp:.3f}",
                f"{each.psnr_db:.2f} dB",
            )
            for each in prepared.methods
        ],
        right=("setting", "bit/pixel", "PSNR"),
    )


@study_app.command()
def run(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="One folder for each method, and one named original, with pictures of the same names.",
            show_default=False,
        ),
    ],
    output: Annotated[str, output_option("OUT.csv", "The answers; a file that exists is gone on with.")],
    rater: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose answers they are; the login name if left out.", show_default=False),
    ] = None,
    seed: Seed = 0,
    crop: Annotated[
        int,
        typer.Option(
            metavar="PIXELS",
            parser=whole("--crop", "the side of a crop", 64, 4096),
            help="Side of the crops at most; smaller where two do not fit on the screen, which are never scaled.",
        ),
    ] = 768,
    view: Annotated[
        str,
        typer.Option(
            metavar="pair|paper",
            parser=one_of("--view", "pair", "paper"),
            help="pair: both methods side by side, Space shows the original. "
            "paper: one method beside the original, Space shows the other.",
        ),
    ] = "pair",
    as_json: Json = False,
) -> None:
    """Ask a rater in a window: which is closer to the original?

    Random crops; the pairs are chosen by binary search over the ranking so far. Every answer is written at once, so the
    window may be closed at any time and opened again. Keys: Left or 1, Right or 2, Space for the original, N for another
    crop, T for dark or light, Esc to end.
    """
    from importlib import import_module  # mypy checks mcode, and would follow the name into the window

    from mcode.evaluation.study import Session, open_material

    name = _login() if rater is None else rater
    with progress_bar("reading", "pictures") as progress:
        material = open_material(folder, progress=progress)
    before = Session(material, output, name, seed=seed, crop=crop).answered  # a wrong --seed is named before a window opens
    check_display("run the study on a desktop", missing=True)
    with extras():
        session = import_module("player.study").run(material, output, name, seed=seed, crop=crop, view=view)
    if as_json:
        counts = {"answers": session.answered, "new_answers": session.answered - before, "most_left": session.most_left}
        print_json({"output": output, "rater": session.rater, **counts})
        return
    left = session.most_left
    print_report(
        output,
        {
            "rater": session.rater,
            "answers": f"{session.answered:,}, {session.answered - before:,} of them now",
            "left": f"at most {left:,}; the same command goes on" if left else "none: the study is complete",
        },
    )


@study_app.command()
def score(
    files: Annotated[list[str], typer.Argument(metavar="OUT.csv", help="Files of answers.", show_default=False)],
    output: Annotated[str | None, output_option("PLOT.png", "Draw the scores: .png, .svg or .pdf.")] = None,
    shuffles: Annotated[
        int,
        typer.Option(
            metavar="COUNT",
            parser=whole("--shuffles", "the number of shuffles", 1, 1_000_000),
            help="Orders of the answers to try.",
        ),
    ] = 10_000,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Elo scores of the methods, over all answers, by rater and by picture.

    Elo with k = 30 and N = 400 over shuffled orders of the answers: median and 95 % interval. That interval tells only what
    the order does, and few answers leave Elo near its start of 1500. How sure the answers make a score, the Bradley-Terry
    model's interval tells, on the same scale: it covers what other pictures and raters of the kind would give, where there
    are several of each and they gave about as many answers.
    """
    from mcode.evaluation import study

    if twice := {file for file in files if sum(Path(other).resolve() == Path(file).resolve() for other in files) > 1}:
        raise InputError(f"{min(twice)}: named twice; name each file of answers once")
    if output is not None:
        study.check_plot(output, force=force)
    result = study.score(study.read_all(files), shuffles=shuffles, seed=seed)
    raters = len(result.raters)
    if result.shuffles < shuffles:
        print_warnings([f"{result.shuffles:,} orders are tried, not {shuffles:,}: there are {result.answers:,} answers"])
    if alone := [what for what, count in (("rater", raters), ("picture", result.pictures)) if count == 1]:
        others = "s and ".join(alone) + "s"
        print_warnings(
            [
                f"the answers are of one {' and one '.join(alone)}: the intervals do not cover what other {others} would give; "
                f"only answers of more {others} tell that"
            ]
        )
    if output is not None:
        study.plot(result, output, force=force)
    if as_json:
        print_json(result)
        return
    print(
        f"{result.answers:,} answers of {raters} rater{'s' * (raters > 1)} on {result.pictures} picture"
        f"{'s' * (result.pictures > 1)}; Elo's median over {result.shuffles:,} orders"
    )
    columns = ("method", "Elo", "95 %", "Bradley-Terry", "95 % ", "won")
    print_table(
        columns,
        [
            (
                each.method,
                f"{each.elo:.0f}",
                f"{each.low:.0f} to {each.high:.0f}",
                f"{each.strength:.0f}",
                f"{each.strength_low:.0f} to {each.strength_high:.0f}",
                f"{each.wins:,} of {each.games:,}",
            )
            for each in result.methods
        ],
        right=columns[1:],
    )
    order = [each.method for each in result.methods]
    for what, parts in (("rater", result.raters), ("picture", result.by_picture)):
        if len(parts) > 1:
            print(f"\nElo by {what}")
            scores = {name: {each.method: each.elo for each in part} for name, part in parts.items()}
            rows = [(name, *(f"{elo[m]:.0f}" if m in elo else "-" for m in order)) for name, elo in scores.items()]
            print_table((what, *order), rows, right=order)
    if output is not None:
        print(f"\n{output}")


def _counted(manifolds: dict[str, str]) -> str:
    return ", ".join(manifolds) or "-" if len(manifolds) < 3 else f"{len(manifolds)} of them"


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise InputError("--rater: this machine knows no login name; give the rater's name") from error
