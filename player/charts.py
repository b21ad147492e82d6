"""Strip charts of the last minute: rate, PSNR, SSIM and what the channel took. pyqtgraph draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyqtgraph as pg
from PyQt6.QtCore import Qt
from PyQt6.QtGui import QColor, QFont, QResizeEvent
from PyQt6.QtWidgets import QHBoxLayout, QLabel, QVBoxLayout, QWidget

from .counters import HISTORY_S, SAMPLE_S, History
from .lanes import Lane
from .theme import SMALL, TINY, Theme, font, with_alpha
from .view import lane_colour, rate_text
from .widgets import Dot

pg.setConfigOptions(antialias=True)


@dataclass(frozen=True)
class Chart:
    """What one strip shows. key: the history's series are "<key> <lane>". least: the smallest span of its axis."""

    key: str
    title: str
    unit: str
    text: Callable[[float], str]
    least: float
    from_zero: bool = False


CHARTS = (
    Chart("rate", "Rate", "kbit/s", rate_text, 1.0, from_zero=True),
    Chart("psnr", "PSNR", "dB", lambda v: f"{v:.1f}", 4.0),
    Chart("ssim", "SSIM", "", lambda v: f"{v:.3f}", 0.05),
    Chart("packets", "Lost or damaged", "packets/s", lambda v: f"{v:.1f}" if v < 100 else f"{v:.0f}", 1.0, from_zero=True),
)


class Strip(QWidget):
    """One chart: a title, the newest value of each lane, and the curves."""

    def __init__(self, chart: Chart, theme: Theme) -> None:
        super().__init__()
        self.chart, self._theme = chart, theme
        self.setAccessibleName(f"{chart.title} over the last minute")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        self._head = QHBoxLayout()
        self._head.setSpacing(6)
        self._title = QLabel(chart.title)
        self._title.setFont(font(SMALL, QFont.Weight.DemiBold))
        self._unit = QLabel(chart.unit)
        self._unit.setFont(font(SMALL))
        self._unit.setProperty("tone", "dim")
        self._head.addWidget(self._title)
        self._head.addWidget(self._unit)
        self._head.addStretch(1)
        self._legend = QWidget()
        self._head.addWidget(self._legend)
        column.addLayout(self._head)
        self.plot = pg.PlotWidget(background=None)
        self.plot.setMouseEnabled(False, False)
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setFrameShape(self.plot.Shape.NoFrame)
        self.plot.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.plot.getPlotItem().setContentsMargins(0, 2, 0, 0)
        self.plot.hideAxis("bottom")
        self.plot.setXRange(-HISTORY_S, 0, padding=0)
        self.plot.showGrid(x=False, y=False)
        axis = self.plot.getAxis("left")
        axis.setWidth(30)
        axis.setStyle(tickFont=font(TINY), tickLength=0, tickTextOffset=6, tickAlpha=0, maxTickLevel=0)
        axis.enableAutoSIPrefix(False)
        self._rules = [pg.InfiniteLine(angle=0, movable=False) for _ in range(3)]
        for rule in self._rules:
            self.plot.addItem(rule)
        column.addWidget(self.plot, 1)
        self._curves: dict[str, pg.PlotDataItem] = {}
        self._values: dict[str, QLabel] = {}
        self._dots: dict[str, Dot] = {}
        self._range = (math.nan, math.nan)
        self.apply(theme)

    def set_lanes(self, lanes: Sequence[Lane]) -> None:
        for curve in self._curves.values():
            self.plot.removeItem(curve)
        self._legend.hide()
        self._head.removeWidget(self._legend)
        self._legend.deleteLater()
        self._legend = QWidget()
        self._head.addWidget(self._legend)
        row = QHBoxLayout(self._legend)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(6)
        self._curves, self._values, self._dots = {}, {}, {}
        for lane in lanes:
            if lane.name == "original":
                continue
            curve = pg.PlotDataItem(connect="finite")
            self.plot.addItem(curve)
            self._curves[lane.name] = curve
            self._dots[lane.name] = dot = Dot(lane_colour(self._theme, lane.name), 7)
            self._values[lane.name] = value = QLabel("–")
            value.setFont(font(SMALL, QFont.Weight.Medium))
            value.setAccessibleName(f"{self.chart.title} of {lane.title}")
            row.addSpacing(6)
            row.addWidget(dot)
            row.addWidget(value)
        self.apply(self._theme)

    def apply(self, theme: Theme) -> None:
        self._theme = theme
        self.plot.setBackground(theme.surface)
        axis = self.plot.getAxis("left")
        axis.setPen(QColor(0, 0, 0, 0))
        axis.setTextPen(QColor(theme.dim))
        for rule in self._rules:
            rule.setPen(pg.mkPen(theme.line, width=1))
        for name, curve in self._curves.items():
            colour = lane_colour(theme, name)
            curve.setPen(pg.mkPen(colour, width=1.8 if name == "mcode" else 1.4))
            curve.setFillLevel(None)
            if name == "mcode" and self.chart.from_zero:
                curve.setFillLevel(0)
                curve.setBrush(with_alpha(colour, 0.10))
            self._dots[name].colour = colour

    def refresh(self, history: History) -> None:
        seen: list[np.ndarray] = []
        for name, curve in self._curves.items():
            at_s, values = self._series(history, name)
            curve.setData(at_s, values)
            finite = values[np.isfinite(values)]
            seen.append(finite)
            newest = values[-1] if len(values) else math.nan
            self._values[name].setText(self.chart.text(newest) if math.isfinite(newest) else "–")
        self._scale(np.concatenate(seen) if seen else np.zeros(0))

    def _series(self, history: History, lane: str) -> tuple[np.ndarray, np.ndarray]:
        if self.chart.key != "packets":
            return history.curve(f"{self.chart.key} {lane}")
        at_s, lost = history.curve(f"lost {lane}")
        _, damaged = history.curve(f"damaged {lane}")
        count = lost + damaged
        if len(count) < 2:
            return at_s[:0], count[:0]
        window = max(1, round(1.0 / SAMPLE_S))
        padded = np.concatenate([np.full(window, count[0]), count])
        return at_s, np.maximum(0.0, padded[window:] - padded[:-window]) / (window * SAMPLE_S)

    def _scale(self, values: np.ndarray) -> None:
        chart = self.chart
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, chart.least)
        if chart.from_zero:
            low = 0.0
        if high - low < chart.least:
            low, high = (
                (low, low + chart.least)
                if chart.from_zero
                else ((low + high - chart.least) / 2, (low + high + chart.least) / 2)
            )
        step = nice((high - low) / 2)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        if (low, high) == self._range:
            return
        self._range = low, high
        self.plot.setYRange(low, high, padding=0.06)
        marks = [low + (high - low) * i / 2 for i in range(3)]
        for rule, at in zip(self._rules, marks, strict=True):
            rule.setValue(at)
        self.plot.getAxis("left").setTicks([[(at, f"{at:.4g}") for at in marks]])


class Charts(QWidget):
    """All strips in a row; as many as there is room for."""

    def __init__(self, theme: Theme) -> None:
        super().__init__()
        self.setObjectName("charts")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        row = QHBoxLayout(self)
        row.setContentsMargins(18, 12, 18, 12)
        row.setSpacing(26)
        self.strips = [Strip(chart, theme) for chart in CHARTS]
        for strip in self.strips:
            row.addWidget(strip, 1)

    def set_lanes(self, lanes: Sequence[Lane]) -> None:
        measured = any(lane.name == "original" for lane in lanes)
        for strip in self.strips:
            strip.set_lanes(lanes)
            strip.setProperty("wanted", measured or strip.chart.key in ("rate", "packets"))
        self._choose()

    def apply(self, theme: Theme) -> None:
        for strip in self.strips:
            strip.apply(theme)

    def refresh(self, history: History) -> None:
        for strip in self.strips:
            if strip.isVisible():
                strip.refresh(history)

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        self._choose()
        super().resizeEvent(event)

    def _choose(self) -> None:
        room = max(1, self.width() // 200)
        for strip in self.strips:
            wanted = bool(strip.property("wanted")) and room > 0
            strip.setVisible(wanted)
            room -= wanted


def nice(span: float) -> float:
    """The smallest of 1, 2, 2.5, 5 x 10^k that is not below span."""
    power = 10 ** math.floor(math.log10(max(span, 1e-9)))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= span * (1 - 1e-9))
