"""The scores of a study as a picture."""

from __future__ import annotations

import os
from pathlib import Path

from mcode.errors import InputError
from mcode.evaluation.study.scores import StudyScore
from mcode.whole import whole


def check_plot(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """InputError where `plot` could not write there; called before the scores are computed."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"{path}: a plot is written as .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no folder {path.parent}; make it or choose another name")
    if path.exists() and not force:
        raise InputError(f"{path}: exists; add --force to replace it or choose another name")


def plot(result: StudyScore, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """The scores as a picture: all raters with their interval, each rater as a small point beside it."""
    path = Path(path)
    check_plot(path, force=force)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.7 + 0.48 * len(result.methods)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rows = {each.method: row for row, each in enumerate(reversed(result.methods))}
    single = [(each.elo, rows[each.method]) for scores in result.raters.values() for each in scores]
    axes.plot([x for x, _ in single], [y - 0.2 for _, y in single], "|", color="#8c96a6", markersize=7, label="one rater")
    for each in result.methods:
        axes.plot([each.low, each.high], [rows[each.method]] * 2, "-", color="#0b8f75", linewidth=2.2, alpha=0.55)
    axes.plot(
        [each.elo for each in result.methods],
        [rows[each.method] for each in result.methods],
        "o",
        color="#0b8f75",
        label="all raters: median and 95 % over orders of the answers",
    )
    axes.errorbar(
        [each.strength for each in result.methods],
        [rows[each.method] + 0.22 for each in result.methods],
        xerr=[(each.strength_high - each.strength_low) / 2 for each in result.methods],
        fmt="D",
        color="#d08a1d",
        markersize=4,
        elinewidth=1.2,
        label="all raters: Bradley-Terry and its 95 %",
    )
    axes.set_yticks(list(rows.values()), list(rows), parse_math=False)
    axes.set_ylim(-0.7, len(rows) - 0.4)
    axes.set_xlabel("Elo score (more is closer to the original)")
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower left", ncols=3)
    raters = len(result.raters)
    title = f"{result.answers:,} answers of {raters} rater{'s' * (raters > 1)} on {result.pictures} pictures"
    axes.set_title(title, loc="left", fontsize=11)
    with whole(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=130)
