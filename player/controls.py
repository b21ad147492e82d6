"""The side panel: what is sent (N, coder, manifold) and what the channel does to it. Acts at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from PyQt6.QtCore import QRectF, Qt, pyqtSignal
from PyQt6.QtGui import QFont, QPainter, QPaintEvent
from PyQt6.QtWidgets import QComboBox, QFrame, QHBoxLayout, QLabel, QPushButton, QScrollArea, QVBoxLayout, QWidget

from . import icons
from .session import BER_LEAST, BER_MOST, LOSS_MOST, N_MOST, RATE_LEAST, RATE_MOST, Settings, qualities, quality_with
from .theme import BODY, DARK, SMALL, TINY, Theme, font
from .widgets import Segments, Slider, Switch

RATE_STEPS_PER_DECADE = 10
RATE_STEPS = round(math.log10(RATE_MOST / RATE_LEAST) * RATE_STEPS_PER_DECADE) + 1
BER_STEPS_PER_DECADE = 10
BER_STEPS = round(math.log10(BER_MOST / BER_LEAST) * BER_STEPS_PER_DECADE) + 1
LOSS_STEPS = round(LOSS_MOST * 100)
DELAY_STEPS, DELAY_STEP_MS = 50, 10
CODERS = (
    ("huffman", "Huffman", "Few bits. A damaged slice keeps its picture until the next refresh"),
    ("fixed", "Fixed", "Most bits, each coordinate the same number. A flipped bit moves one coordinate a little"),
    ("range", "Range", "Fewest bits. A damaged slice keeps its picture until the next refresh"),
)
"""Value, label and what to know of it."""
NO_HYPERPRIOR = "This manifold has no hyperprior, which the range coder needs; general has one"


def rate_of(step: int) -> float | None:
    """Kbit/s at a slider stop: stop 0 is none, then RATE_LEAST to RATE_MOST in equal ratios, rounded to two digits."""
    return None if step <= 0 else float(f"{RATE_LEAST * 10 ** ((step - 1) / RATE_STEPS_PER_DECADE):.2g}")


def step_of_rate(kbps: float | None) -> int:
    """The slider stop nearest to a rate."""
    if kbps is None:
        return 0
    return min(RATE_STEPS, max(1, 1 + round(math.log10(kbps / RATE_LEAST) * RATE_STEPS_PER_DECADE)))


def ber_of(step: int) -> float:
    """Bit error rate at a slider stop: stop 0 is 0, then BER_LEAST to BER_MOST in equal ratios."""
    return 0.0 if step <= 0 else BER_LEAST * 10 ** ((step - 1) / BER_STEPS_PER_DECADE)


def step_of_ber(rate: float) -> int:
    """The slider stop nearest to a bit error rate."""
    if rate < BER_LEAST / 2:
        return 0
    return min(BER_STEPS, max(1, 1 + round(math.log10(rate / BER_LEAST) * BER_STEPS_PER_DECADE)))


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def ber_text(rate: float) -> str:
    if rate <= 0:
        return "none"
    exponent = math.floor(math.log10(float(f"{rate:.1e}")) + 1e-9)  # of what is shown: 9.97e-5 is 10⁻⁴
    mantissa = rate / 10**exponent
    power = "10" + str(exponent).translate(_SUPERSCRIPT)
    return power if abs(mantissa - 1) < 0.05 else f"{mantissa:.1f} × {power}"


class Field(QWidget):
    """A label, its value on the right, and a slider below."""

    def __init__(self, name: str, steps: int, hint: str) -> None:
        super().__init__()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        row = QHBoxLayout()
        self.label, self.value = QLabel(name), QLabel()
        self.label.setFont(font(BODY))
        self.value.setFont(font(BODY, QFont.Weight.Medium))
        row.addWidget(self.label)
        row.addStretch(1)
        row.addWidget(self.value)
        self.slider = Slider(name, steps)
        self.setToolTip(hint)
        column.addLayout(row)
        column.addWidget(self.slider)

    def show_text(self, text: str) -> None:
        self.value.setText(text)
        self.slider.describe(text)

    def setEnabled(self, enabled: bool) -> None:
        self.slider.setEnabled(enabled)
        for label in (self.label, self.value):
            _tone(label, enabled)


class Combo(QComboBox):
    """A drop-down with the window's own arrow."""

    theme: Theme = DARK

    def paintEvent(self, event: QPaintEvent | None) -> None:
        super().paintEvent(event)
        painter = QPainter(self)
        icons.paint(painter, "chevron", QRectF(self.width() - 24, self.height() / 2 - 8, 16, 16), self.theme.dim)


class Controls(QWidget):
    """Emits changed with the new Settings at every move of a control."""

    changed = pyqtSignal(object)

    def __init__(self, theme: Theme) -> None:
        super().__init__()
        self.setObjectName("panel")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setAccessibleName("Controls")
        self._settings, self._adjustable = Settings(), frozenset[str]()
        self._model: Any = None
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        outer.addWidget(scroll)
        inside = QWidget()
        scroll.setWidget(inside)
        column = QVBoxLayout(inside)
        column.setContentsMargins(20, 18, 20, 18)
        column.setSpacing(14)

        column.addWidget(_heading("Stream"))
        self.n = Field("Keyframe interval N", N_MOST - 1, "Every N-th frame is sent; those between are made by the receiver")
        column.addWidget(self.n)
        self.adaptive = Switch("Adaptive", "N is the most: keyframes come sooner where the frames between would blur")
        column.addWidget(self.adaptive)
        self.rate = Field(
            "Rate", RATE_STEPS, "N is the most: keyframes come as soon as this rate has paid for them, RTP headers included"
        )
        column.addWidget(self.rate)
        self.quality = Field("Quality", 0, "More detail for more bits; the other codec follows the rate")
        column.addWidget(self.quality)
        self.coder = Segments("Coder", tuple((coder, label) for coder, label, _ in CODERS))
        for coder, _, hint in CODERS:
            self.coder.button(coder).setToolTip(hint)
            self.coder.button(coder).setAccessibleDescription(hint)
        self._coder_label, holder = _labelled("Coder", self.coder)
        column.addWidget(holder)
        self.manifold = Combo()
        self.manifold.setAccessibleName("Manifold")
        self.manifold.setFont(font(BODY))
        self.manifold.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self._manifold_label, holder = _labelled("Manifold", self.manifold)
        column.addWidget(holder)
        column.addSpacing(4)
        column.addWidget(_rule())
        column.addSpacing(2)

        head = QHBoxLayout()
        head.addWidget(_heading("Channel"))
        head.addStretch(1)
        self.reset = QPushButton("Reset")
        self.reset.setFont(font(SMALL))
        self.reset.setCursor(Qt.CursorShape.PointingHandCursor)
        self.reset.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.reset.setAccessibleName("Reset the channel")
        self.reset.setStyleSheet("min-height: 20px; padding: 0 6px;")
        head.addWidget(self.reset)
        column.addLayout(head)
        self.ber = Field("Bit error rate", BER_STEPS, "Probability that a bit of the payload is flipped, in both lanes")
        self.loss = Field("Packet loss", LOSS_STEPS, "Probability that a packet is lost, in both lanes")
        self.delay = Field("Delay", DELAY_STEPS, "Added to every packet")
        for field in (self.ber, self.loss, self.delay):
            column.addWidget(field)
        self.note = QLabel("")
        self.note.setFont(font(SMALL))
        self.note.setProperty("tone", "dim")
        self.note.setWordWrap(True)
        column.addWidget(self.note)
        column.addStretch(1)

        self.n.slider.moved.connect(lambda step: self.change(n=step + 1))
        self.adaptive.clicked.connect(lambda on: self.change(adaptive=on))
        self.rate.slider.moved.connect(lambda step: self.change(rate_kbps=rate_of(step)))
        self.quality.slider.moved.connect(lambda step: self.change(quality=step + 1))
        self.coder.chosen.connect(lambda coder: self.change(coder=coder))
        self.manifold.activated.connect(lambda index: self.change(manifold=self.manifold.itemData(index)))
        self.ber.slider.moved.connect(lambda step: self.change(bit_error_rate=ber_of(step)))
        self.loss.slider.moved.connect(lambda step: self.change(loss=step / 100))
        self.delay.slider.moved.connect(lambda step: self.change(delay_ms=float(step * DELAY_STEP_MS)))
        self.reset.clicked.connect(lambda: self.change(bit_error_rate=0.0, loss=0.0, delay_ms=0.0, jitter_ms=0.0, burst=1.0))
        self.apply(theme)
        self.show_settings(self._settings, self._adjustable)

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def _quality(self) -> int:
        return 1 if self._model is None else quality_with(self._model, self._settings.quality)

    @property
    def _rate_kbps(self) -> float | None:
        return self._settings.rate_kbps if self._settings.n > 1 else None

    def set_manifolds(self, choices: list[tuple[str | None, str]], chosen: str | None) -> None:
        """choices: (value, label)."""
        self.manifold.clear()
        for value, label in choices:
            self.manifold.addItem(label, value)
        self.manifold.setCurrentIndex(max(0, self.manifold.findData(chosen)) if choices else -1)

    def set_model(self, model: Any) -> None:
        """The manifold in use, None while there is none: what it has is what can be chosen."""
        self._model = model
        self.quality.slider.steps = (1 if model is None else qualities(model)) - 1
        self.quality.setVisible(self.quality.slider.steps > 0)
        possible = getattr(model, "hyper", None) is not None
        button, hint = self.coder.button("range"), CODERS[-1][2] if possible else NO_HYPERPRIOR
        button.setEnabled(possible)
        button.setToolTip(hint)
        button.setAccessibleDescription(hint)

    def show_settings(self, settings: Settings, adjustable: frozenset[str]) -> None:
        """Without emitting changed. What is not adjustable here is shown, greyed."""
        self._settings, self._adjustable = settings, adjustable
        self.n.slider.value = settings.n - 1
        self.adaptive.setChecked(settings.adaptive and settings.n > 1)
        self.rate.slider.value = step_of_rate(self._rate_kbps)
        self.quality.slider.value = self._quality - 1
        self.coder.value = settings.coder
        self.ber.slider.value = step_of_ber(settings.bit_error_rate)
        self.loss.slider.value = round(settings.loss * 100)
        self.delay.slider.value = round(settings.delay_ms / DELAY_STEP_MS)
        self._show_texts()
        self.n.setEnabled("n" in adjustable)
        self.adaptive.setVisible("adaptive" in adjustable)
        self.adaptive.setEnabled(settings.n > 1)
        self.rate.setVisible("rate_kbps" in adjustable)
        self.rate.setEnabled(settings.n > 1)
        self.quality.setEnabled("quality" in adjustable)
        for name, control, label in (
            ("coder", self.coder, self._coder_label),
            ("manifold", self.manifold, self._manifold_label),
        ):
            control.setEnabled(name in adjustable)
            _tone(label, name in adjustable)
        self.ber.setEnabled("bit_error_rate" in adjustable)
        self.loss.setEnabled("loss" in adjustable)
        self.delay.setVisible("delay_ms" in adjustable)
        self.reset.setVisible("loss" in adjustable)

    def apply(self, theme: Theme) -> None:
        for field in (self.n, self.rate, self.quality, self.ber, self.loss, self.delay):
            field.slider.apply(theme)
        self.adaptive.apply(theme)
        self.manifold.theme = theme

    def change(self, **values: Any) -> None:
        """As if the user had moved the controls of these fields of Settings."""
        self._settings = replace(self._settings, **values)
        self.show_settings(self._settings, self._adjustable)
        self.changed.emit(self._settings)

    def _show_texts(self) -> None:
        s = self._settings
        self.n.show_text(f"{s.n} frame" + ("s" if s.n > 1 else ""))
        self.rate.show_text("off" if self._rate_kbps is None else f"{self._rate_kbps:g} kbit/s")
        self.quality.show_text(f"{self._quality} of {self.quality.slider.steps + 1}")
        self.ber.show_text(ber_text(s.bit_error_rate))
        self.loss.show_text(f"{100 * s.loss:.3g} %" if s.loss else "none")
        self.delay.show_text(f"{s.delay_ms:.0f} ms" if s.delay_ms else "none")


def _heading(text: str) -> QLabel:
    label = QLabel(text.upper())
    label.setFont(font(TINY, QFont.Weight.DemiBold, spacing=0.9))
    label.setProperty("tone", "dim")
    return label


def _tone(label: QLabel, enabled: bool) -> None:
    label.setProperty("tone", "" if enabled else "faint")
    style = label.style()
    assert style is not None
    style.unpolish(label)
    style.polish(label)


def _labelled(text: str, widget: QWidget) -> tuple[QLabel, QWidget]:
    holder = QWidget()
    column = QVBoxLayout(holder)
    column.setContentsMargins(0, 0, 0, 0)
    column.setSpacing(6)
    label = QLabel(text)
    label.setFont(font(BODY))
    column.addWidget(label)
    column.addWidget(widget)
    return label, holder


def _rule() -> QFrame:
    rule = QFrame()
    rule.setObjectName("rule")
    rule.setFixedHeight(1)
    return rule
