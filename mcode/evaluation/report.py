"""What `mcode compare` shows: one self-contained HTML page, one picture, and a labelled side-by-side video. No measuring."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import matplotlib
import matplotlib.ticker
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..frame import Frame
from ..video import FrameWriter
from ..whole import whole, write_whole

if TYPE_CHECKING:
    from .compare import CompareReport, Lane, Row

ACCENT = "#e4572e"
COLOURS = {"MCode": ACCENT, "H.264": "#3b6ea5", "H.265": "#2a9d8f", "AV1": "#8d5fb0", "Original": "#666666"}
PANEL_HEIGHT = 360
"""Pictures smaller than this are scaled up by whole factors in the video, so that their pixels stay what they are."""
MOST_WIDTH = 1920
SAME_PSNR_DB = 0.5
"""Encodings further apart are not called equal: 4:2:0 codecs have a ceiling, and CRF goes in steps."""

Curves = Mapping[str, Sequence[tuple[float, float]]]


def write_side_by_side(
    path: Path,
    pictures: Iterator[tuple[int, list[np.ndarray]]],
    lanes: Sequence[Lane],
    *,
    audio_from: str | os.PathLike[str] | None,
    start_s: float,
    duration_s: float | None,
) -> None:
    """Consumes `pictures`, (pts, a picture of each lane), into a video with a caption over every picture."""
    writer: FrameWriter | None = None
    try:
        for pts, row in pictures:
            if writer is None:
                height, width = row[0].shape[:2]
                columns = _columns(len(lanes), width, height)
                scale = _scale(width, height, columns)
                size = max(16, round(width * scale)), max(16, round(height * scale))
                captions = [_caption(lane, size[0]) for lane in lanes]
            sheet = _sheet(row, captions, columns, size)
            if writer is None:
                writer = FrameWriter(
                    path,
                    width=sheet.shape[1],
                    height=sheet.shape[0],
                    audio_from=audio_from,
                    start_s=start_s,
                    duration_s=duration_s,
                    force=True,
                )
            writer.push(Frame(sheet, pts))
        assert writer is not None
        writer.close()
    except BaseException:
        if writer is not None:
            writer.abort()
        raise


def _columns(count: int, width: int, height: int) -> int:
    """As near to 16:9 as a grid of `count` pictures comes with few empty places."""

    def cost(columns: int) -> float:
        rows = -(-count // columns)
        shape = columns * width / (rows * height)
        return abs(float(np.log(shape / (16 / 9)))) + 0.35 * (rows * columns - count)

    return min(range(1, count + 1), key=cost)


def _scale(width: int, height: int, columns: int) -> float:
    scale = max(1, PANEL_HEIGHT // height)
    return scale if scale * width * columns <= MOST_WIDTH else max(0.1, MOST_WIDTH / columns / width)


def _sheet(row: Sequence[np.ndarray], captions: Sequence[np.ndarray], columns: int, size: tuple[int, int]) -> np.ndarray:
    gap = 8
    bar = captions[0].shape[0]
    rows = -(-len(row) // columns)
    height = rows * (size[1] + bar + gap) + gap
    width = columns * (size[0] + gap) + gap
    sheet = np.full((height + height % 2, width + width % 2, 3), 18, np.uint8)
    grown = size[0] > row[0].shape[1]
    for i, (picture, caption) in enumerate(zip(row, captions, strict=True)):
        top, left = gap + (i // columns) * (size[1] + bar + gap), gap + (i % columns) * (size[0] + gap)
        sheet[top : top + bar, left : left + size[0]] = caption
        shown = cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST if grown else cv2.INTER_AREA)
        sheet[top + bar : top + bar + size[1], left : left + size[0]] = shown
    return sheet


def _caption(lane: Lane, width: int) -> np.ndarray:
    """A bar (h, width, 3): the codec at the left, its rate and PSNR at the right where there is room."""
    size = int(np.clip(width / 22, 11, 22))
    bar = Image.new("RGB", (width, 2 * size), (18, 18, 18))
    draw = ImageDraw.Draw(bar)
    colour = COLOURS.get(lane.label, "#dddddd") if lane.row is not None else "#dddddd"
    bold, plain = _font(size, True), _font(size, False)
    draw.text((4, size), lane.label, font=bold, fill=_light(colour), anchor="lm")
    if lane.row is not None:
        text = f"{row_rate(lane.row)}{' (floor)' if lane.row.floor else ''}   {lane.row.psnr_db:.1f} dB"
        used = draw.textlength(lane.label, font=bold) + 16
        while draw.textlength(text, font=plain) > width - used and plain.size > 8:
            plain = _font(int(plain.size) - 1, False)
        draw.text((width - 4, size), text, font=plain, fill=(225, 225, 225), anchor="rm")
    return np.asarray(bar)


def _light(code: str) -> str:
    """The colour, nearer to white: for dark backgrounds."""
    values = [int(code[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(v + (255 - v) * 0.35):02x}" for v in values)


@lru_cache(maxsize=64)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def rate_text(kbps: float) -> str:
    """A rate with three digits: 0.508 kbit/s, 12.3 kbit/s, 1.23 Mbit/s."""
    if kbps >= 1000:
        return f"{kbps / 1000:.3g} Mbit/s"
    return f"{kbps:.0f} kbit/s" if kbps >= 100 else f"{kbps:.3g} kbit/s"


def row_rate(row: Row) -> str:
    """Of a single picture in bit/pixel, as `encode` and `info` tell it; of a video a rate over time."""
    return rate_text(row.rate_kbps) if row.bits_per_pixel is None else f"{row.bits_per_pixel:.3f} bit/pixel"


def write_picture(path: Path, report: CompareReport, lanes: Sequence[Lane], curves: Curves, title: str) -> None:
    """One PNG: the same frame under every codec, a close-up, the rate-distortion curves and the bits at equal PSNR."""
    figure = _figure(report, lanes, curves, title)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=110, facecolor="white")


def _figure(report: CompareReport, lanes: Sequence[Lane], curves: Curves, title: str) -> Any:
    from matplotlib.figure import Figure

    count = len(lanes)
    aspect = report.height / report.width
    picture_in = 14.0 / count
    heights = [picture_in * min(aspect, 1.3), picture_in, 3.4]
    figure = Figure(figsize=(14, sum(heights) + 1.9), layout="constrained")
    figure.suptitle(_headline(report, title), fontsize=15, fontweight="bold", x=0.012, ha="left", parse_math=False)
    grid = figure.add_gridspec(3, 1, height_ratios=heights)
    top, close = grid[0].subgridspec(1, count), grid[1].subgridspec(1, count)
    middle = len(lanes[0].strip) // 2
    box = close_up(lanes, middle)
    for i, lane in enumerate(lanes):
        picture = lane.strip[middle]
        axes = figure.add_subplot(top[i])
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(_lane_title(lane), fontsize=11, color=COLOURS.get(lane.label, "black"), loc="left")
        zoom = figure.add_subplot(close[i])
        y, x, side = box
        zoom.imshow(picture[y : y + side, x : x + side], interpolation="nearest")
        if i == 0:
            zoom.set_title("close-up", fontsize=9, color="#666666", loc="left")
        for a in (axes, zoom):
            a.set_axis_off()
    bottom = grid[2].subgridspec(1, 3, width_ratios=[1.25, 1.25, 1])
    plot_rate_distortion(figure.add_subplot(bottom[0]), report, curves)
    plot_psnr(figure.add_subplot(bottom[1]), lanes)
    plot_bits(figure.add_subplot(bottom[2]), report)
    return figure


def _headline(report: CompareReport, title: str) -> str:
    ours = report.rows[0]
    return f"{title}: MCode at {row_rate(ours)}, {ours.psnr_db:.1f} dB ({report.width}x{report.height})"


def _lane_title(lane: Lane) -> str:
    if lane.row is None:
        return lane.label
    floor = " (floor)" if lane.row.floor else ""
    return f"{lane.label}\n{row_rate(lane.row)}{floor}, {lane.row.psnr_db:.1f} dB"


def close_up(lanes: Sequence[Lane], index: int) -> tuple[int, int, int]:
    """(top, left, side) of the square, a third of the shorter side, that has most detail in the original."""
    grey = cv2.cvtColor(lanes[0].strip[index], cv2.COLOR_RGB2GRAY).astype(np.float32)
    side = max(8, min(grey.shape) // 3)
    detail = cv2.boxFilter(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), -1, (side, side))
    half = side // 2
    inner = detail[half : grey.shape[0] - half, half : grey.shape[1] - half]
    if inner.size == 0:
        return 0, 0, min(grey.shape)
    y, x = np.unravel_index(int(inner.argmax()), inner.shape)
    return min(int(y), grey.shape[0] - side), min(int(x), grey.shape[1] - side), side


def _plain(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def log_rates(axes: Any) -> None:
    """What is drawn already on a logarithmic axis of rates, with some three to ten numbers in plain digits."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    narrow = matplotlib.ticker.MaxNLocator(4)
    wide = matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.1 else (1.0, 3.0) if decades < 3 else (1.0,))
    axes.xaxis.set_major_locator(narrow if decades < 1 else wide)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def plot_rate_distortion(axes: Any, report: CompareReport, curves: Curves) -> None:
    """PSNR over rate, logarithmic, from every encoding that the searches made; MCode is one point."""
    for label, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker=".", color=COLOURS.get(label), label=label)
    ours = report.rows[0]
    rate, unit = (ours.rate_kbps, "kbit/s") if ours.bits_per_pixel is None else (ours.bits_per_pixel, "bit/pixel")
    axes.plot(rate, ours.psnr_db, "*", markersize=15, color=ACCENT)
    above = {"xytext": (0, 12), "textcoords": "offset points", "ha": "center", "fontsize": 9, "color": ACCENT}
    axes.annotate("MCode", (rate, ours.psnr_db), **above)  # in the legend a second star would seem a second point
    axes.margins(0.08, 0.12)
    log_rates(axes)
    _plain(axes, "Rate and distortion", unit, "PSNR, dB")
    axes.legend(frameon=False, fontsize=9)


def plot_psnr(axes: Any, lanes: Sequence[Lane]) -> None:
    """PSNR of every frame, at equal rate."""
    for lane in lanes:
        if lane.row is not None:
            marker = "o" if len(lane.psnr_db) == 1 else None  # of one point there is no line
            axes.plot(
                np.minimum(lane.psnr_db, 60), marker=marker, color=COLOURS.get(lane.label), linewidth=1.2, label=lane.label
            )
    _plain(axes, "Frame by frame, at equal rate or the codec's floor", "frame", "PSNR, dB")


def plot_bits(axes: Any, report: CompareReport) -> None:
    """Bits at equal PSNR over MCode's."""
    rows = [report.rows[0], *(row for row in report.rows if row.at == "equal PSNR")]
    for i, row in enumerate(rows):
        axes.barh(i, row.bits, color=COLOURS.get(row.codec), height=0.6)
        note = "" if row.at == "mcode" else f"  {row.bits:.3g}x{' (its floor)' if row.floor else ''}"
        axes.text(row.bits, i, note, va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row.codec for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, max(row.bits for row in rows) * 1.35)
    _plain(axes, "Bits for the same PSNR", "times MCode's", "")


def write_html(path: Path, report: CompareReport, lanes: Sequence[Lane], curves: Curves, title: str) -> None:
    """One page without any other file: pictures are data URIs, nothing is fetched."""
    from jinja2 import Environment, PackageLoader
    from matplotlib.figure import Figure

    plots = []
    for draw, given in (
        (plot_rate_distortion, (report, curves)),
        (plot_psnr, (lanes,)),
        (plot_bits, (report,)),
    ):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        draw(figure.add_subplot(), *given)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
        plots.append(text.getvalue()[text.getvalue().index("<svg") :])
    strips = [[(lane, _data_uri(lane.strip[i])) for lane in lanes] for i in range(min(len(lane.strip) for lane in lanes))]
    template = Environment(loader=PackageLoader("mcode.evaluation", "."), autoescape=True).get_template("report.html")
    page = template.render(
        title=title,
        headline=_headline(report, title),
        report=report,
        verdict=verdict(report),
        rows=report.rows,
        strips=strips,
        plots=plots,
        row_rate=row_rate,
    )
    write_whole(path, page)


def verdict(report: CompareReport) -> list[str]:
    """What the table says, in sentences; plain about where MCode loses."""
    lines = []
    ours = report.rows[0]
    for row in report.rows:
        if row.at == "equal PSNR":
            if row.floor and row.bits >= 1:
                lines.append(
                    f"{row.codec} cannot go as low: at its floor it takes {row.bits:.3g} times MCode's bits "
                    f"and reaches {row.psnr_db:.1f} dB against {ours.psnr_db:.1f} dB."
                )
            elif abs(row.psnr_db - ours.psnr_db) > SAME_PSNR_DB and (row.bits >= 1 or row.psnr_db < ours.psnr_db):
                lines.append(
                    f"{row.codec} comes no nearer to MCode's {ours.psnr_db:.1f} dB than {row.psnr_db:.1f} dB, "
                    f"with {row.bits:.3g} times the bits."
                )
            elif row.bits >= 1:
                lines.append(f"{row.codec} needs {row.bits:.3g} times the bits for the same PSNR.")
            else:
                lines.append(f"MCode loses: {row.codec} reaches the same PSNR with {row.bits:.0%} of the bits.")
    return [*lines, *report.warnings]


def _data_uri(rgb: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(rgb).save(data, format="PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
