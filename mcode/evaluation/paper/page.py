"""What `mcode evaluate paper` shows: plots, sheets of pictures and one page. No measuring."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ...whole import whole, write_whole

COLOURS = {
    "NCode": "#e4572e",
    "NCode residual": "#b8336a",
    "linear": "#e0a030",
    "JPEG": "#3b6ea5",
    "JPEG 2000": "#2a9d8f",
    "H.264": "#3b6ea5",
    "H.265": "#2a9d8f",
    "AV1": "#8d5fb0",
}
STYLES = {"folded": "-", "natural": "--", "gray": ":"}
LABEL_WIDTH = 190


def sheet(rows: Sequence[tuple[str, np.ndarray]], scale: int = 1, columns: int = 12) -> np.ndarray:
    """One row of pictures for each (title, uint8 (N, H, W, 3)), titles at the left. Returns uint8 (h, w, 3), on white."""
    from PIL import ImageDraw

    from ..report import _font

    out = []
    for title, pictures in rows:
        tiles = [cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST) for p in pictures[:columns]]
        line = np.concatenate([np.pad(t, ((0, 3), (0, 3), (0, 0)), constant_values=255) for t in tiles], 1)
        label = Image.new("RGB", (LABEL_WIDTH, line.shape[0]), "white")
        wrapped = "\n".join(part for part_of in title.split("\n") for part in textwrap.wrap(part_of, 25))
        ImageDraw.Draw(label).multiline_text((4, 4), wrapped, fill="#1d1f24", font=_font(13, False), spacing=3)
        out.append(np.concatenate([np.array(label), line], 1))
    width = max(line.shape[1] for line in out)
    return np.concatenate([np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in out])


def save_picture(path: Path, rgb: np.ndarray) -> None:
    """Written whole or not at all."""
    with whole(path) as part:
        Image.fromarray(rgb).save(part, "PNG")


def _figure(columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, 3.8), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def _finish(figure: Any, path: Path) -> None:
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=130)


def plot_noise(path: Path, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Figure 4b: PSNR over bit error rate, one panel for each set."""
    from ..report import _plain

    figure, axes = _figure(len(results))
    lines: dict[str, Any] = {}
    for panel, (title, rows) in zip(axes, results.items(), strict=True):
        for codec, code in dict.fromkeys((row["codec"], row["code"]) for row in rows):
            points = [(r["bit_error_rate"], r["psnr_db"]) for r in rows if (r["codec"], r["code"]) == (codec, code)]
            (line,) = panel.plot(*zip(*points, strict=True), STYLES.get(code, "-"), color=COLOURS.get(codec), marker=".")
            lines.setdefault(f"{codec}, {code}", line)
        _plain(panel, title, "bit error rate", "PSNR, dB")
    figure.legend(lines.values(), lines, loc="outside right center", frameon=False, fontsize=8)
    _finish(figure, path)


def plot_accuracy(path: Path, rows: Sequence[Mapping[str, Any]], paper: Mapping[str, float]) -> None:
    """Figure 4a: accuracy over rate, and the paper's beside it as shares of its own clean accuracy."""
    from ..report import _plain

    figure, (axes,) = _figure(1)
    for codec in dict.fromkeys(row["codec"] for row in rows if row["codec"] != "original"):
        points = sorted((r["bpp"], r["kept"]) for r in rows if r["codec"] == codec)
        axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS.get(codec), label=codec)
    known = {"NCode (100, 5)": 0.4883, "NCode (25, 4)": 0.0977, "NCode (25, 2)": 0.0488, "JPEG": 1.962, "JPEG 2000": 1.354}
    for name, bpp in known.items():
        codec = name.partition(" (")[0]
        axes.plot(bpp, paper[name] / paper["original"], "x", color=COLOURS.get(codec), markersize=8)
    axes.plot([], [], "x", color="grey", label="in the paper")
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    _plain(axes, "CIFAR-10: accuracy kept", "bit/pixel, without headers", "share of the clean accuracy")
    axes.legend(frameon=False, fontsize=8)
    _finish(figure, path)


def plot_rates(path: Path, title: str, rows: Sequence[Mapping[str, Any]], metrics: Sequence[tuple[str, str]]) -> None:
    """Quality over kbit/s, one panel for each of `metrics` (key, label)."""
    from ..report import _plain, log_rates

    shown = [(key, label) for key, label in metrics if any(row.get(key) is not None for row in rows)]
    figure, axes = _figure(len(shown))
    palette = ["#e0a030", "#6a994e", "#666666", "#0aa0c0"]
    names = list(dict.fromkeys(row["codec"] for row in rows))
    colours = {name: COLOURS.get(name) or palette[i % len(palette)] for i, name in enumerate(names)}
    for panel, (key, label) in zip(axes, shown, strict=True):
        for name in names:
            points = sorted((r["kbps"], r[key]) for r in rows if r["codec"] == name and r.get(key) is not None)
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colours[name], label=name)
        log_rates(panel)
        _plain(panel, title, "kbit/s", label)
    axes[0].legend(frameon=False, fontsize=8)
    _finish(figure, path)


def write_page(path: Path, facts: Mapping[str, str], parts: Sequence[Mapping[str, Any]]) -> None:
    """One page without other files. parts: {"title", "note", "tables": [{"title", "columns", "rows"}], "pictures": [paths]}."""
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("mcode.evaluation", "."), autoescape=True).get_template("paper/page.html")
    shown = [
        {**part, "pictures": [(p.name, _uri(p)) for p in map(Path, part.get("pictures", ())) if p.is_file()]} for part in parts
    ]
    write_whole(path, template.render(facts=facts, parts=shown))


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
