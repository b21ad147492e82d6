"""What `mcode evaluate images` shows: results.json, a PNG for each metric, index.html and crops.html. No measuring."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mcode.evaluation.compare import Lane
from mcode.evaluation.images import ANCHOR, BdRow, CropRow, ImageRow, ImagesReport, to_json
from mcode.evaluation.judges import METRICS, Metric
from mcode.evaluation.report import ACCENT, COLOURS, _data_uri, close_up, log_rates
from mcode.text import shown_name
from mcode.whole import write_whole

_OURS = (ACCENT, "#a63c1c", "#f2994a", "#6d2a17")
_OTHERS = {"JPEG": "#a98600", "JPEG 2000": "#7f7f7f", "WebP": "#c0588f"}
_MARKERS = {"JPEG": "s", "JPEG 2000": "D", "WebP": "^", "H.265": "o", "AV1": "v"}
_UNDER_CROPS = ("psnr_db", "ms_ssim", "lpips", "vgg19", "mobilenet")
_SHORT = {"psnr_db": "dB", "ms_ssim": "MS-SSIM", "lpips": "LPIPS", "vgg19": "VGG19", "mobilenet": "MobileNet"}


def names(folder: Path, metrics: Sequence[Metric], crops: bool) -> Iterator[Path]:
    """What `write` may write; of close-ups' pictures those that are there."""
    yield from (folder / name for name in ("results.json", "index.html", *(f"{metric.key}.png" for metric in metrics)))
    if crops:
        yield folder / "crops.html"
        yield from sorted((folder / "crops").glob("[0-9]*-[0-9]*-*.png"))


def write(folder: Path, report: ImagesReport, close_ups: Sequence[CropRow]) -> list[Path]:
    """Writes all files, each whole or not at all, and removes those of the report before that are not among them; returns
    their paths, index.html first and results.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _written_before(folder)
    files = []
    plots = []
    for metric in report.metrics:
        if not any(row.scores.get(metric.key) is not None for row in report.rows):
            continue
        files.append(_write(folder / f"{metric.key}.png", _drawn(report, metric, "png")))
        text = _drawn(report, metric, "svg").decode()
        plots.append(text[text.index("<svg") :])
    if close_ups:
        files += _write_pictures(folder / "crops", close_ups)
        page = _render("crops.html", report=report, rows=_crop_rows(close_ups), title=_title(report))
        files.insert(0, _write(folder / "crops.html", page))
    page = _render(
        "images.html",
        title=_title(report),
        report=report,
        verdict=verdict(report),
        plots=plots,
        table=_table(report),
        bd_table=_bd_table(report),
        anchor=ANCHOR,
        crops=bool(close_ups),
    )
    files.insert(0, _write(folder / "index.html", page))
    text = json.dumps(_finite(to_json(report)), indent=1, allow_nan=False)
    files.append(_write(folder / "results.json", text.encode()))
    for path in before.difference(files):
        path.unlink(missing_ok=True)
    if any(path.parent != folder for path in before):
        with suppress(OSError):  # not empty
            (folder / "crops").rmdir()
    return files


def _written_before(folder: Path) -> set[Path]:
    """The plots and close-ups of the report that lies there, as its results.json has them, and nothing else in the folder."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        drawn = {metric["key"] for metric in results["metrics"]} if {"rows", "bd_rates", "anchor"} <= results.keys() else set()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()
    names = [f"{metric.key}.png" for metric in METRICS if metric.key in drawn]
    page = folder / "crops.html"
    if drawn and page.is_file() and not (folder / "crops").is_symlink():
        found = re.findall(r'href="(crops/[0-9]+-[0-9]+-[A-Za-z0-9._-]+\.png)"', page.read_text("utf-8", errors="replace"))
        names += [page.name, *found] if found else []
    return {folder / name for name in names if (folder / name).is_file()}


def _write(path: Path, content: bytes) -> Path:
    write_whole(path, content)
    return path


def _render(template: str, **values: Any) -> bytes:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("mcode.evaluation", "."), autoescape=True)
    return environment.get_template(template).render(**values).encode(errors="replace")  # names of files that are no UTF-8


def _title(report: ImagesReport) -> str:
    pictures = "1 picture" if report.images == 1 else f"{report.images} pictures"
    return f"{shown_name(Path(report.folder).resolve())}: {pictures} under {len({row.codec for row in report.rows})} codecs"


def verdict(report: ImagesReport) -> list[str]:
    """What the BD-rates of MCode's manifolds say, in sentences; plain about where they lose."""
    labels = {metric.key: metric.label.removesuffix(", dB") for metric in report.metrics}
    lines = []
    for row in report.bd_rates:
        if row.codec.startswith("MCode") and row.bd is not None:
            share = abs(row.bd.percent)
            amount = (
                f"{share:.0f} % {'fewer' if row.bd.percent < 0 else 'more'} bits than x265 for the same {labels[row.metric]}"
            )
            lines.append(f"{row.codec} takes {amount} (over {100 * row.bd.overlap:.0f} % of the range of both).")
    return lines


def _table(report: ImagesReport) -> list[tuple[bool, list[str]]]:
    """(ours?, cells) of each row."""
    return [
        (row.codec.startswith("MCode"), [row.codec, row.setting, f"{row.bpp:.3f}", *_cells(row.scores, report.metrics)])
        for row in report.rows
    ]


def _cells(scores: dict[str, float | None], metrics: Sequence[Metric]) -> list[str]:
    return [value_text(metric.key, scores.get(metric.key)) for metric in metrics]


def value_text(key: str, value: float | None) -> str:
    """A score with the digits that mean something."""
    if value is None:
        return "–"
    digits = {"ssim": 4, "ms_ssim": 4, "kid256": 5, "mobilenet_kid256": 5}
    digits |= dict.fromkeys(("psnr_db", "niqe", "fid256", "squeezenet_fid256"), 2)
    return f"{value:.{digits.get(key, 3)}f}"


def bd_text(row: BdRow) -> str:
    """+12.3 %, with the overlap where it is less than half; a dash where it is not defined."""
    if row.bd is None:
        return "–"
    note = f" ({100 * row.bd.overlap:.0f} %)" if row.bd.overlap < 0.5 else ""
    return f"{row.bd.percent:+.1f} %{note}"


def _bd_table(report: ImagesReport) -> list[tuple[bool, list[str]]]:
    found: dict[str, list[str]] = {}
    for row in report.bd_rates:
        found.setdefault(row.codec, []).append(bd_text(row))
    return [(codec.startswith("MCode"), [codec, *cells]) for codec, cells in found.items()]


def _style(codec: str, ours: Sequence[str]) -> tuple[str, str, float]:
    """Colour, marker and line width."""
    if codec in ours:
        return _OURS[ours.index(codec) % len(_OURS)], "*", 2.2
    name = next((n for n in sorted([*_OTHERS, *COLOURS], key=len, reverse=True) if codec.startswith(n)), "")
    return _OTHERS.get(name, COLOURS.get(name, "#444444")), _MARKERS.get(name, "o"), 1.3


def _drawn(report: ImagesReport, metric: Metric, kind: str) -> bytes:
    """The curves of one metric over the rate, as a PNG or SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row.codec for row in report.rows))
    ours = [name for name in names if name.startswith("MCode")]
    for name in names:
        points = sorted(_points(report.rows, name, metric.key))
        if points:
            colour, marker, width = _style(name, ours)
            size = 10 if name in ours else 5
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=size, linewidth=width, label=name)
    if (own := report.originals.get(metric.key)) is not None:
        axes.axhline(own, color="#666666", linewidth=1, linestyle=":")
        axes.annotate("the pictures themselves", (0.01, own), xycoords=("axes fraction", "data"), fontsize=8, color="#666666",
                      ha="left", va="top")  # fmt: skip
    log_rates(axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, which="both")
    axes.set_xlabel("bit/pixel")
    axes.set_ylabel(metric.label)
    axes.set_title(f"{metric.label} ({'more' if metric.higher_is_better else 'less'} is better)", loc="left", fontsize=11)
    for text in axes.legend(frameon=False, fontsize=8.5).get_texts():
        text.set_parse_math(False)  # names of curves are as their files'
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=120, transparent=kind == "svg")
    return file.getvalue()


def _points(rows: Sequence[ImageRow], codec: str, key: str) -> list[tuple[float, float]]:
    return [(row.bpp, value) for row in rows if row.codec == codec and (value := row.scores.get(key)) is not None]


def _write_pictures(folder: Path, rows: Sequence[CropRow]) -> list[Path]:
    """The whole pictures behind the close-ups, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, row in enumerate(rows, start=1):
        pictures = [("original", row.original), *((crop.codec, crop.decoded) for crop in row.crops)]
        for column, (codec, rgb) in enumerate(pictures):
            data = io.BytesIO()
            Image.fromarray(rgb).save(data, format="PNG")
            files.append(_write(folder / _picture_name(number, column, row.name, codec), data.getvalue()))
    return files


def _picture_name(row: int, column: int, picture: str, codec: str) -> str:
    """The numbers tell apart what is one name in plain characters."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(picture).stem}-{codec}")
    return f"{row}-{column}-{plain[-100:]}.png"


def _crop_rows(rows: Sequence[CropRow]) -> list[list[dict[str, Any]]]:
    found = []
    for number, row in enumerate(rows, start=1):
        top, left, side = close_up([Lane("Original", None, [row.original])], 0)

        def cut(rgb: np.ndarray, box: tuple[int, int, int] = (top, left, side)) -> str:
            y, x, s = box
            return _data_uri(np.ascontiguousarray(rgb[y : y + s, x : x + s]))

        cells: list[dict[str, Any]] = [
            {"label": "Original", "note": row.name, "scores": [], "uri": cut(row.original), "ours": False, "floor": False}
        ]
        cells[0]["file"] = _picture_name(number, 0, row.name, "original")
        for column, crop in enumerate(row.crops, start=1):
            scores = [
                f"{value_text(key, value)} {_SHORT[key]}" if key == "psnr_db" else f"{_SHORT[key]} {value:.3f}"
                for key in _UNDER_CROPS
                if (value := crop.scores.get(key)) is not None
            ]
            cells.append(
                {
                    "label": crop.codec,
                    "note": f"{crop.bpp:.3f} bit/pixel",
                    "setting": crop.setting,
                    "scores": scores,
                    "uri": cut(crop.decoded),
                    "ours": crop.codec.startswith("MCode"),
                    "floor": crop.floor,
                    "file": _picture_name(number, column, row.name, crop.codec),
                }
            )
        found.append(cells)
    return found


def _finite(value: Any) -> Any:
    """Without infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
