"""What lies over the pictures for a while: stats (i), keys (?), messages, and the page shown while nothing plays."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from PyQt6.QtCore import QEvent, QObject, QPointF, QRectF, Qt, QTimer, pyqtSignal
from PyQt6.QtGui import QColor, QFont, QFontMetricsF, QMouseEvent, QPainter, QPaintEvent, QPixmap, QResizeEvent, QTextDocument
from PyQt6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from . import icons
from .session import Rows
from .theme import BODY, DARK, SMALL, TINY, TITLE, Theme, font, with_alpha, wrapped
from .widgets import literal

MESSAGE_MS = 3500
PICTURE = 56

KEYS = (
    (
        "Play",
        (
            ("Space, p", "play or pause"),
            (".  ,", "next or previous frame"),
            ("←  →", "back or on by 5 s"),
            ("↓  ↑", "back or on by 60 s"),
            ("Home", "to the start"),
            ("[  ]", "slower or faster"),
            ("Backspace", "speed 1"),
            ("l", "loop"),
            ("m", "mute"),
        ),
    ),
    (
        "View",
        (
            ("1", "side by side"),
            ("2", "wipe between two"),
            ("3", "MCode alone"),
            ("4", "show the original"),
            ("f", "full screen"),
            ("i", "stats"),
            ("c", "controls"),
            ("g", "charts"),
            ("t", "dark or light"),
        ),
    ),
    (
        "File",
        (
            ("o", "open"),
            ("u", "open an address"),
            ("s", "screenshot"),
            ("r", "record the comparison"),
            ("?", "these keys"),
            ("q", "quit"),
        ),
    ),
)


class Stats(QWidget):
    """A card of names and aligned values over the pictures, smaller where it would not fit."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.setAccessibleName("Stats")
        self.rows: Rows = []
        self._scale = 1.0
        self.hide()

    def show_rows(self, rows: Rows) -> None:
        self.rows = rows
        parent = self.parentWidget()
        assert parent is not None
        name_width, value_width = self._widths()
        width, height = name_width + value_width + 58, len(rows) * 19 + 26
        room_width, room_height = parent.width() - 16, parent.height() - 16
        self._scale = min(1.0, room_width / width, room_height / height)
        width, height = round(width * self._scale), round(height * self._scale)
        self.setGeometry(min(26, 8 + room_width - width), min(26, 8 + room_height - height), width, height)
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(with_alpha("#07090c", 0.80))
        painter.drawRoundedRect(QRectF(self.rect()), 10, 10)
        painter.scale(self._scale, self._scale)
        name_width, value_width = self._widths()
        for index, (name, value) in enumerate(self.rows):
            y = 13 + index * 19
            inset = 12 if name.startswith(" ") else 0
            painter.setFont(font(SMALL))
            painter.setPen(QColor("#8c95a5"))
            painter.drawText(QRectF(16 + inset, y, name_width + 8, 19), Qt.AlignmentFlag.AlignVCenter, name.strip())
            painter.setPen(QColor("#f1f3f6"))
            painter.drawText(QRectF(40 + name_width, y, value_width + 2, 19), Qt.AlignmentFlag.AlignVCenter, value)

    def _widths(self) -> tuple[float, float]:
        metrics = QFontMetricsF(font(SMALL))
        names, values = (max((metrics.horizontalAdvance(row[i]) for row in self.rows), default=0.0) for i in (0, 1))
        return names, values


class Keys(QWidget):
    """All keys, over the whole window. Any click closes it."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.theme: Theme = DARK
        self.setAccessibleName("Keys")
        self.setAccessibleDescription("; ".join(f"{key}: {what}" for _, rows in KEYS for key, what in rows))
        self.hide()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self.hide()

    def paintEvent(self, event: QPaintEvent) -> None:
        t, painter = self.theme, QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.fillRect(self.rect(), with_alpha("#000000", 0.60))
        tight = self.height() < 420 or self.width() < 760
        row_height, size, gap, padding = (15.0, TINY, 8.0, 14.0) if tight else (25.0, BODY, 24.0, 30.0)
        key_font, text_font = font(size, QFont.Weight.Medium), font(size)
        keys, texts = QFontMetricsF(key_font).horizontalAdvance, QFontMetricsF(text_font).horizontalAdvance
        widths = [(max(keys(key) for key, _ in rows) + gap, max(texts(what) for _, what in rows)) for _, rows in KEYS]
        most = max(len(rows) for _, rows in KEYS)
        between = 1.5 * gap
        wide = sum(key + text for key, text in widths) + between * (len(KEYS) - 1)
        box = QRectF(0, 0, wide + 2 * padding, (most + 1.6) * row_height + 2 * padding)
        painter.translate(QPointF(self.rect().center()))
        fits = min(1.0, self.width() / box.width(), self.height() / box.height())
        painter.scale(fits, fits)
        box.moveCenter(QPointF(0, 0))
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(t.surface))
        painter.drawRoundedRect(box, 14, 14)
        x, y, middle = box.left() + padding, box.top() + padding, Qt.AlignmentFlag.AlignVCenter
        for (title, rows), (key_width, text_width) in zip(KEYS, widths, strict=True):
            painter.setFont(font(TINY, QFont.Weight.DemiBold, spacing=0.9))
            painter.setPen(QColor(t.accent))
            painter.drawText(QRectF(x, y, key_width + text_width, row_height), middle, title.upper())
            for index, (key, what) in enumerate(rows):
                at = y + (index + 1.6) * row_height
                painter.setFont(key_font)
                painter.setPen(QColor(t.text))
                painter.drawText(QRectF(x, at, key_width, row_height), middle, key)
                painter.setFont(text_font)
                painter.setPen(QColor(t.dim))
                painter.drawText(QRectF(x + key_width, at, text_width + 1, row_height), middle, what)
            x += key_width + text_width + between


class Message(QWidget):
    """One line at the bottom of the pictures that goes away by itself; problems stay until clicked."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.theme: Theme = DARK
        self.text, self._problem = "", False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self.hide)
        parent.installEventFilter(self)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.hide()

    def say(self, text: str, *, problem: bool = False) -> None:
        self.text, self._problem = " ".join(text.split()), problem
        self.setAccessibleName(self.text)
        self.show()  # which may give the parent another size
        self.place()
        self.raise_()
        self._timer.stop()
        if not problem:
            self._timer.start(MESSAGE_MS)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Resize and self.isVisible():
            self.place()
        return False

    def place(self) -> None:
        parent = self.parentWidget()
        assert parent is not None
        width = min(parent.width() - 24, round(QFontMetricsF(font(BODY)).horizontalAdvance(self.text)) + 54)
        laid_out = QTextDocument(self.text)
        laid_out.setDefaultFont(font(BODY))
        laid_out.setDefaultTextOption(wrapped(Qt.AlignmentFlag.AlignLeft))
        laid_out.setDocumentMargin(0)
        laid_out.setTextWidth(width - 50)
        height = min(parent.height() - 24, math.ceil(laid_out.size().height()) + 24)
        self.setGeometry((parent.width() - width) // 2, parent.height() - height - 16, width, height)
        self.update()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self.hide()

    def paintEvent(self, event: QPaintEvent) -> None:
        t, painter = self.theme, QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QColor(t.line))
        painter.setBrush(QColor(t.raised))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), 10, 10)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(t.problem if self._problem else t.accent))
        painter.drawEllipse(QPointF(20, self.height() / 2), 3.5, 3.5)
        painter.setPen(QColor(t.text))
        painter.setFont(font(BODY))
        text = QRectF(34, 4, self.width() - 50, self.height() - 8)
        painter.drawText(text, self.text, wrapped(Qt.AlignmentFlag.AlignVCenter))


class Busy(QWidget):
    """What one waits for, over the pictures."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.theme: Theme = DARK
        self.text = ""
        self._turn = 0
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._advance)
        self.hide()

    def say(self, text: str | None) -> None:
        if text is None:
            if self.isVisible():
                self.hide()
                self._timer.stop()
        else:
            if not self.isVisible():
                self.show()
                self._timer.start(40)
            if text != self.text:
                self.text = text
                self.setAccessibleName(text)
                self.update()

    def _advance(self) -> None:
        self._turn = (self._turn + 9) % 360
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        t, painter = self.theme, QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.fillRect(self.rect(), QColor(t.canvas))
        middle = QPointF(self.width() / 2, self.height() / 2 - 16)
        pen = painter.pen()
        pen.setWidthF(2.6)
        pen.setCapStyle(Qt.PenCapStyle.RoundCap)
        pen.setColor(QColor(t.hover))
        painter.setPen(pen)
        circle = QRectF(middle.x() - 15, middle.y() - 15, 30, 30)
        painter.drawEllipse(circle)
        pen.setColor(QColor(t.accent))
        painter.setPen(pen)
        painter.drawArc(circle, -self._turn * 16, 90 * 16)
        painter.setPen(QColor(t.dim))
        painter.setFont(font(BODY))
        below = QRectF(16, middle.y() + 32, self.width() - 32, self.height())
        painter.drawText(below, self.text, wrapped(Qt.AlignmentFlag.AlignHCenter))


class Welcome(QWidget):
    """Shown while nothing plays: what can be opened, and what was opened before."""

    wants_open, wants_demo, wants_camera = pyqtSignal(), pyqtSignal(), pyqtSignal()
    wants_recent = pyqtSignal(str)

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("canvas")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.theme: Theme = DARK
        outer = QVBoxLayout(self)
        outer.setContentsMargins(24, 24, 24, 24)
        outer.addStretch(3)
        self._picture = QLabel()
        self._picture.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        outer.addWidget(self._picture)
        outer.addSpacing(10)
        self._title = QLabel("Open a video to compare")
        self._title.setFont(font(20, QFont.Weight.DemiBold))
        self._title.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        outer.addWidget(self._title)
        outer.addSpacing(4)
        self._text = QLabel("Drop a file here: an .mcode file plays, any other video is encoded live beside H.264.")
        self._text.setFont(font(TITLE))
        self._text.setProperty("tone", "dim")
        self._text.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        self._text.setWordWrap(True)
        outer.addWidget(self._text)
        outer.addSpacing(20)
        row = QHBoxLayout()
        row.setSpacing(10)
        row.addStretch(1)
        for label, name, signal in (
            ("Open…", "primary", self.wants_open),
            ("Demo", "solid", self.wants_demo),
            ("Camera", "solid", self.wants_camera),
        ):
            button = QPushButton(label)
            button.setObjectName(name)
            button.setFont(font(BODY, QFont.Weight.Medium))
            button.setCursor(Qt.CursorShape.PointingHandCursor)
            button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
            button.setAccessibleName(label.rstrip("…"))
            button.clicked.connect(signal)
            row.addWidget(button)
        row.addStretch(1)
        outer.addLayout(row)
        outer.addSpacing(26)
        self._recent = QWidget()
        self._recent_rows = QVBoxLayout(self._recent)
        self._recent_rows.setContentsMargins(0, 0, 0, 0)
        self._recent_rows.setSpacing(0)
        holder = QHBoxLayout()
        holder.addStretch(1)
        holder.addWidget(self._recent)
        holder.addStretch(1)
        outer.addLayout(holder)
        outer.addStretch(4)

    def set_recent(self, paths: Sequence[str]) -> None:
        while (item := self._recent_rows.takeAt(0)) is not None:
            widget = item.widget()
            if widget is not None:
                widget.deleteLater()
        self._recent.setVisible(bool(paths))
        if not paths:
            return
        head = QLabel("RECENT")
        head.setFont(font(TINY, QFont.Weight.DemiBold, spacing=0.9))
        head.setProperty("tone", "dim")
        head.setContentsMargins(10, 0, 0, 4)
        self._recent_rows.addWidget(head)
        for path in paths[:5]:
            button = QPushButton(literal(_shortened(path)))
            button.setObjectName("link")
            button.setFont(font(BODY))
            button.setToolTip(f"<qt>{html.escape(path)}</qt>")
            button.setCursor(Qt.CursorShape.PointingHandCursor)
            button.setMinimumWidth(320)
            button.clicked.connect(self._opener(path))
            self._recent_rows.addWidget(button)

    def _opener(self, path: str) -> Callable[[], None]:
        return lambda: self.wants_recent.emit(path)

    def apply(self, theme: Theme) -> None:
        self.theme = theme
        scale = self.devicePixelRatioF()
        pixmap = QPixmap(round(PICTURE * scale), round(PICTURE * scale))
        pixmap.fill(Qt.GlobalColor.transparent)
        painter = QPainter(pixmap)
        icons.paint(painter, "film", QRectF(0, 0, pixmap.width(), pixmap.height()), theme.faint)
        painter.end()
        pixmap.setDevicePixelRatio(scale)
        self._picture.setPixmap(pixmap)
        self.update()

    def resizeEvent(self, event: QResizeEvent) -> None:
        tall = self.height() > 340
        self._picture.setVisible(tall)
        self._recent.setVisible(tall and self._recent_rows.count() > 0)
        super().resizeEvent(event)


def _shortened(path: str) -> str:
    home = str(Path.home())
    folder, name = os.path.split(path)
    if not folder or "://" in path:
        return path
    folder = "~" + folder[len(home) :] if folder.startswith(home) else folder
    return f"{name}    {folder if len(folder) < 34 else '…' + folder[-32:]}"
