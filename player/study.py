"""The window of a user study: two coded crops, the original at a key, one question. What to ask is `mcode.evaluation.study`'s.

Pixels are shown one to one, never scaled. The names of the methods are never shown.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

import numpy as np
from PyQt6.QtCore import QPointF, QRectF, QSize, Qt, QTimer
from PyQt6.QtGui import QColor, QFont, QImage, QKeyEvent, QPainter, QPaintEvent
from PyQt6.QtWidgets import QApplication, QHBoxLayout, QLabel, QPushButton, QSizePolicy, QStackedWidget, QVBoxLayout, QWidget

from mcode.errors import InputError
from mcode.evaluation.study import CROP, ORIGINAL, Material, Question, Session

from .theme import BODY, DARK, LIGHT, SMALL, TITLE, Theme, font, palette, style_sheet
from .view import image_of
from .widgets import IconButton

GAP, MARGIN, CAPTION = 14.0, 18.0, 34.0
BARS = 170
"""Height, in points, that the bars, captions, margins and the window's own frame take from the screen."""
VIEWS = ("pair", "paper")
"""pair: both methods side by side, Space shows the original in both places. paper: one method at a time left, the original
always right, Space goes from one method to the other (Mentzer et al. 2020, section 3.4)."""
LEAST_S = 0.4
"""An answer sooner than this after its question appeared is none: the second half of a double click."""
LOOK_FIRST = {
    "pair": "Look at the original first: press Space",
    "paper": "Look at the other one first: press Space",
}


class Crops(QWidget):
    """Two crops side by side, one to one in the screen's pixels, each with a caption."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("canvas")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setAccessibleName("Pictures")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.theme: Theme = DARK
        self._images: tuple[QImage, ...] = ()
        self._captions: tuple[str, ...] = ()
        self._marked: tuple[bool, ...] = ()

    def show_crops(self, crops: tuple[np.ndarray, np.ndarray], captions: tuple[str, str], marked: tuple[bool, bool]) -> None:
        """crops: uint8 (H, W, 3) of one size. marked: captions in the accent's colour, for the original."""
        self._images, self._captions, self._marked = tuple(map(image_of, crops)), captions, marked
        for image in self._images:
            image.setDevicePixelRatio(self.devicePixelRatioF())
        self.setAccessibleDescription(f"left: {captions[0]}, right: {captions[1]}")
        self.setMinimumSize(self._needed())
        self.update()

    def places(self) -> list[QRectF]:
        """Where the crops are painted, in points."""
        if not self._images:
            return []
        size = self._images[0].deviceIndependentSize()
        left = round((self.width() - 2 * size.width() - GAP) / 2)
        top = round((self.height() - size.height() - CAPTION) / 2)
        return [QRectF(left + i * (size.width() + GAP), top, size.width(), size.height()) for i in range(2)]

    def _needed(self) -> QSize:
        size = self._images[0].deviceIndependentSize()
        return QSize(int(2 * size.width() + GAP + 2 * MARGIN), int(size.height() + CAPTION + 2 * MARGIN))

    def paintEvent(self, event: QPaintEvent) -> None:
        painter, t = QPainter(self), self.theme
        painter.fillRect(self.rect(), QColor(t.canvas))
        for place, image, caption, marked in zip(self.places(), self._images, self._captions, self._marked, strict=True):
            painter.drawImage(QPointF(place.topLeft()), image)
            painter.setFont(font(TITLE, QFont.Weight.DemiBold))
            painter.setPen(QColor(t.accent if marked else t.text))
            below = QRectF(place.left(), place.bottom(), place.width(), CAPTION)
            painter.drawText(below, Qt.AlignmentFlag.AlignCenter, caption)


class StudyWindow(QWidget):
    """Asks what the session asks until it is done or the rater ends it. view: one of VIEWS. now: the wall clock, in seconds."""

    def __init__(
        self, session: Session, *, view: str = "pair", theme: Theme = DARK, now: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.session, self.view, self._now = session, view, now
        self.setObjectName("window")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setWindowTitle("MCode study")
        self.question: Question | None = None
        self.problem: InputError | None = None
        self.flipped = False
        self.looks = 0
        self._looked_at: object = None
        self._asked_at = 0.0
        self._cached: tuple[object, dict[str, np.ndarray]] = (None, {})
        self._build()
        self.apply(theme)
        self._ask()

    def _build(self) -> None:
        self.title = QLabel("Which one is closer to the original?")
        self.title.setFont(font(TITLE + 1, QFont.Weight.DemiBold))
        self.counter = QLabel()
        self.counter.setFont(font(BODY))
        self.counter.setProperty("tone", "dim")
        self.theme_button = IconButton("sun", "Dark or light", "T")
        self.theme_button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.theme_button.clicked.connect(self.toggle_theme)
        self.end_button = self._button("End", "Esc", self.close)
        self.crops = Crops()
        self.done = QLabel()
        self.done.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.done.setFont(font(TITLE + 1))
        self.pages = QStackedWidget()
        self.pages.addWidget(self.crops)
        self.pages.addWidget(self.done)
        self.crop_button = self._button("Another crop", "N", self.recrop)
        self.left_button = self._button("1 is closer", "1 or ←", lambda: self.choose(left=True), solid=True)
        self.flip_button = self._button("Original" if self.view == "pair" else "The other one", "Space", self.flip, solid=True)
        self.right_button = self._button("2 is closer", "2 or →", lambda: self.choose(left=False), solid=True)
        self.hint = QLabel()
        self.hint.setFont(font(SMALL))
        self.hint.setProperty("tone", "accent")
        self.hint.setWordWrap(True)
        self.hint.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._bar((self.title,), (), (self.counter, self.theme_button, self.end_button)))
        column.addWidget(self.pages, 1)
        column.addWidget(self._bar((self.crop_button,), (self.left_button, self.flip_button, self.right_button), (self.hint,)))

    def _button(self, label: str, key: str, action: Callable[[], object], *, solid: bool = False) -> QPushButton:
        button = QPushButton(f"{label}   {key}")
        button.setAccessibleName(label)
        button.setToolTip(f"{label}  ({key})")
        button.setFont(font(BODY))
        button.setObjectName("solid" if solid else "")
        button.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # Space and the arrows answer; they must not press a focused button
        button.setCursor(Qt.CursorShape.PointingHandCursor)
        button.clicked.connect(lambda _: action())
        return button

    def _bar(self, left: Sequence[QWidget], middle: Sequence[QWidget], right: Sequence[QWidget]) -> QWidget:
        bar = QWidget()
        bar.setObjectName("bar")
        bar.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        row = QHBoxLayout(bar)
        row.setContentsMargins(16, 9, 16, 9)
        parts = []
        for widgets, side in ((left, "left"), (middle, "middle"), (right, "right")):
            part = QWidget()
            inner = QHBoxLayout(part)
            inner.setContentsMargins(0, 0, 0, 0)
            if side == "right" and self.hint not in widgets:
                inner.addStretch(1)
            for widget in widgets:
                inner.addWidget(widget)
            if side == "left":
                inner.addStretch(1)
            parts.append(part)
        row.addWidget(parts[0], 1)
        row.addWidget(parts[1])
        row.addWidget(parts[2], 1)
        return bar

    def apply(self, theme: Theme) -> None:
        self.theme = self.crops.theme = theme
        app = QApplication.instance()
        assert isinstance(app, QApplication)
        app.setPalette(palette(theme))
        self.setStyleSheet(style_sheet(theme))
        self.theme_button.apply(theme)
        self.theme_button.set_icon("sun" if theme is DARK else "moon")
        self.crops.update()

    def toggle_theme(self) -> None:
        self.apply(LIGHT if self.theme is DARK else DARK)

    def flip(self) -> None:
        """The original in place of both methods and back, or the other method in place of the first."""
        if self.question is None:
            return
        self.flipped = not self.flipped
        if self.flipped:
            self.looks += 1
            self._looked_at = self._what_to_look_at()
            self.hint.clear()
        self._paint()

    def recrop(self) -> None:
        """Another place of the picture, until its first answer."""
        if self.question is not None and self.session.may_recrop:
            self.session.recrop()
            self._ask()

    def choose(self, *, left: bool) -> None:
        """The rater's answer; refused, with a hint, before a look at what it is to be compared with."""
        seconds = self._now() - self._asked_at
        if self.question is None or seconds < LEAST_S:
            return
        if self._looked_at != self._what_to_look_at():
            self.hint.setText(LOOK_FIRST[self.view])
            return
        try:
            self.session.answer(left=left, looks=self.looks, seconds=seconds)
        except OSError as error:
            self.hint.setText(f"not written: {error.strerror}")
            return
        except InputError as error:
            self.hint.setText(str(error))
            return
        self._ask()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.isAutoRepeat():
            return
        key = Qt.Key
        match Qt.Key(event.key()):
            case key.Key_Left | key.Key_1:
                self.choose(left=True)
            case key.Key_Right | key.Key_2:
                self.choose(left=False)
            case key.Key_Space:
                self.flip()
            case key.Key_N:
                self.recrop()
            case key.Key_T:
                self.toggle_theme()
            case key.Key_Escape:
                self.close()
            case _:
                super().keyPressEvent(event)

    def _what_to_look_at(self) -> object:
        """In `pair` the original, once for each crop; in `paper` the second method, for each pair."""
        assert self.question is not None
        where = self.question.picture, self.question.crop
        return where if self.view == "pair" else (where, self.session.answered)

    def _ask(self) -> None:
        self.question, self.flipped, self.looks = self.session.question, False, 0
        self._asked_at = self._now()
        self.hint.clear()
        if self.question is None:
            count = self.session.answered
            self.done.setText(f"Done. Thank you!\n\n{count} answers are in {self.session.output.name}.")
            self.pages.setCurrentWidget(self.done)
            self.title.setText("The study is complete")
        else:
            try:
                self._paint()
            except InputError as error:  # a picture that has gone since: the answers stay, and the window ends
                self.problem, self.question = error, None
                self.close()
        left = self.session.most_left
        self.counter.setText(f"at most {left:,} left" if left else f"{self.session.answered:,} answered")
        for button in (self.left_button, self.flip_button, self.right_button):
            button.setVisible(self.question is not None)
        self.crop_button.setVisible(self.session.may_recrop)

    def _paint(self) -> None:
        q = self.question
        assert q is not None
        first, second, original = (self._crop(method) for method in (q.left, q.right, ORIGINAL))
        if self.view == "paper":
            shown = (second if self.flipped else first, original), ("2" if self.flipped else "1", "Original"), (False, True)
        elif self.flipped:
            shown = (original, original), ("Original", "Original"), (True, True)
        else:
            shown = (first, second), ("1", "2"), (False, False)
        self.crops.show_crops(*shown)

    def _crop(self, method: str) -> np.ndarray:
        assert self.question is not None
        where = self.question.picture, self.question.crop
        if self._cached[0] != where:
            self._cached = where, {}
        if method not in self._cached[1]:
            x, y, w, h = self.question.crop
            self._cached[1][method] = self.session.material.read(method, self.question.picture)[y : y + h, x : x + w]
        return self._cached[1][method]


def crop_side(width: float, height: float, ratio: float, most: int = CROP) -> int:
    """The side of a crop of which two fit on a screen of width x height points at so many pixels a point, at most `most`."""
    across = (width * ratio - (GAP + 2 * MARGIN) * ratio) / 2
    return max(64, min(most, int(across), int((height - BARS) * ratio)))


def run(
    material: Material, output: str | os.PathLike[str], rater: str, *, seed: int = 0, crop: int = CROP, view: str = "pair"
) -> Session:
    """Shows the window until it is closed; returns the session for its counts. InputError for a file of another study."""
    if view not in VIEWS:
        raise InputError(f"--view {view}: choose {' or '.join(VIEWS)}")
    application = QApplication.instance() or QApplication(["mcode"])
    assert isinstance(application, QApplication)
    application.setApplicationName("MCode")
    application.setStyle("Fusion")
    screen = application.primaryScreen()
    assert screen is not None
    area = screen.availableGeometry()
    side = crop_side(area.width(), area.height(), screen.devicePixelRatio(), crop)
    session = Session(material, output, rater, seed=seed, crop=side)
    hints = application.styleHints()
    light = hints is not None and hints.colorScheme() == Qt.ColorScheme.Light
    window = StudyWindow(session, view=view, theme=LIGHT if light else DARK)
    if window.problem:  # with the first question
        raise window.problem
    window.show()
    previous = signal.signal(signal.SIGINT, lambda *_: window.close())
    wake = QTimer()  # lets Python see Ctrl-C while Qt waits
    wake.timeout.connect(lambda: None)
    wake.start(300)
    application.exec()
    signal.signal(signal.SIGINT, previous)
    if window.problem:
        raise window.problem
    return session
