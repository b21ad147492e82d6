"""The window's own controls: a slider, a switch, a row of choices, an icon button, a timeline. They know nothing of video."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PyQt6.QtCore import QEvent, QPoint, QPointF, QRectF, QSize, Qt, pyqtSignal
from PyQt6.QtGui import QColor, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QWheelEvent
from PyQt6.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QHBoxLayout,
    QMenu,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QToolTip,
    QWidget,
)

from . import icons
from .theme import BODY, DARK, SMALL, Theme, font, with_alpha


class IconButton(QToolButton):
    """A square button with an icon; its tooltip names the action and its key, and is what a screen reader says."""

    def __init__(self, icon: str, name: str, key: str = "", *, checkable: bool = False, size: int = 18) -> None:
        super().__init__()
        self._icon, self._theme = icon, DARK
        self.setCheckable(checkable)
        self.setIconSize(QSize(size, size))
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.name_it(name, key)
        self.toggled.connect(lambda _: self._draw())

    def name_it(self, name: str, key: str = "") -> None:
        self.setAccessibleName(name)
        self.setToolTip(f"{name}  ({key})" if key else name)

    def set_icon(self, icon: str) -> None:
        if icon != self._icon:
            self._icon = icon
            self._draw()

    def apply(self, theme: Theme) -> None:
        self._theme = theme
        self._draw()

    def _draw(self) -> None:
        t = self._theme
        normal = t.accent if self.isChecked() else t.dim
        self.setIcon(icons.icon(self._icon, normal, t.accent if self.isChecked() else t.text, t.faint))


def literal(text: str) -> str:
    """For a button or a menu, where a single & marks a key."""
    return text.replace("&", "&&")


def offer(menu: QMenu, text: str, act: Callable[[], object]) -> None:
    """One more line of a menu."""
    action = menu.addAction(literal(text))
    assert action is not None
    action.triggered.connect(lambda: act())


class Segments(QWidget):
    """One of a few choices, side by side. chosen is emitted with its value when the user picks another."""

    chosen = pyqtSignal(object)

    def __init__(self, name: str, choices: Sequence[tuple[object, str]], stretch: bool = True) -> None:
        super().__init__()
        self.setObjectName("segments")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setAccessibleName(name)
        row = QHBoxLayout(self)
        row.setContentsMargins(1, 1, 1, 1)
        row.setSpacing(0)
        self._group = QButtonGroup(self)
        self._values = [value for value, _ in choices]
        self._buttons: list[QPushButton] = []
        for index, (_, label) in enumerate(choices):
            button = QPushButton(label)
            button.setCheckable(True)
            button.setCursor(Qt.CursorShape.PointingHandCursor)
            button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
            button.setFont(font(SMALL))
            button.setAccessibleName(f"{name}: {label}")
            self._group.addButton(button, index)
            self._buttons.append(button)
            row.addWidget(button, 1 if stretch else 0)
        self._group.idClicked.connect(lambda index: self.chosen.emit(self._values[index]))

    @property
    def value(self) -> object:
        return self._values[self._group.checkedId()] if self._group.checkedId() >= 0 else None

    @value.setter
    def value(self, value: object) -> None:
        if value in self._values:
            self.button(value).setChecked(True)

    def button(self, value: object) -> QPushButton:
        return self._buttons[self._values.index(value)]


class Switch(QCheckBox):
    """A label and a switch at the right. clicked tells what the user wants; setChecked does not."""

    def __init__(self, name: str, hint: str) -> None:
        super().__init__(name)
        self._theme = DARK
        self.setFont(font(BODY))
        self.setToolTip(hint)
        self.setAccessibleName(name)
        self.setAccessibleDescription(hint)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFixedHeight(22)

    def apply(self, theme: Theme) -> None:
        self._theme = theme
        self.update()

    def hitButton(self, pos: QPoint) -> bool:
        return self.rect().contains(pos)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        t, painter = self._theme, QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(self.font())
        painter.setPen(QColor(t.text if self.isEnabled() else t.faint))
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignVCenter, self.text())
        track = QRectF(self.width() - 31.0, self.height() / 2 - 8, 30, 16)
        on = self.isChecked() and self.isEnabled()
        painter.setPen(Qt.PenStyle.NoPen)
        if self.hasFocus():
            painter.setPen(QPen(with_alpha(t.accent, 0.65), 1.5))
        painter.setBrush(QColor(t.accent if on else t.hover))
        painter.drawRoundedRect(track, 8, 8)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(t.on_accent if on else t.dim if self.isEnabled() else t.faint))
        painter.drawEllipse(QPointF(track.right() - 8 if self.isChecked() else track.left() + 8, track.center().y()), 5.5, 5.5)

    def changeEvent(self, event: QEvent | None) -> None:
        if event is not None and event.type() == QEvent.Type.EnabledChange:
            self.setCursor(Qt.CursorShape.PointingHandCursor if self.isEnabled() else Qt.CursorShape.ArrowCursor)
        super().changeEvent(event)


class Slider(QWidget):
    """A slim slider over stops 0..steps. moved tells the stop while the user drags, scrolls or types arrows."""

    moved = pyqtSignal(int)

    def __init__(self, name: str, steps: int, page: int = 4) -> None:
        super().__init__()
        self.steps, self._value, self._page, self._theme = steps, 0, page, DARK
        self._describe = ""
        self._name = name
        self.setAccessibleName(name)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setMinimumWidth(60)
        self.setFixedHeight(22)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)
        self.marks: tuple[int, ...] = ()

    @property
    def value(self) -> int:
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        self._value = min(max(0, value), self.steps)
        self.update()

    def describe(self, text: str) -> None:
        """What the value means, for screen readers."""
        if text != self._describe:
            self._describe = text
            self.setAccessibleDescription(text)

    def apply(self, theme: Theme) -> None:
        self._theme = theme
        self.update()

    def move_to(self, value: int) -> None:
        value = min(max(0, value), self.steps)
        if value != self._value:
            self.value = value
            self.moved.emit(value)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            self._follow(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if event.buttons() & Qt.MouseButton.LeftButton:
            self._follow(event)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        self._follow(event)

    def wheelEvent(self, event: QWheelEvent) -> None:
        self.move_to(self._value + (1 if event.angleDelta().y() > 0 else -1))
        event.accept()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        key = Qt.Key
        by = {
            key.Key_Left: -1,
            key.Key_Down: -1,
            key.Key_Right: 1,
            key.Key_Up: 1,
            key.Key_PageDown: -self._page,
            key.Key_PageUp: self._page,
            key.Key_Home: -self.steps,
            key.Key_End: self.steps,
        }.get(Qt.Key(event.key()))
        if by is None:
            super().keyPressEvent(event)
        else:
            self.move_to(self._value + by)

    def paintEvent(self, event: QPaintEvent) -> None:
        t, painter = self._theme, QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        left, right, middle = 8.0, self.width() - 8.0, self.height() / 2
        x = left + (right - left) * self._value / max(1, self.steps)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(t.hover))
        painter.drawRoundedRect(QRectF(left, middle - 2, right - left, 4), 2, 2)
        if self.isEnabled():
            painter.setBrush(QColor(t.accent))
            painter.drawRoundedRect(QRectF(left, middle - 2, x - left, 4), 2, 2)
        painter.setBrush(QColor(t.faint if not self.isEnabled() else t.text if t.name == "dark" else "#ffffff"))
        if t.name == "light":
            painter.setPen(QPen(QColor(t.accent if self.isEnabled() else t.faint), 1.5))
        if self.hasFocus() or (self.underMouse() and self.isEnabled()):
            pen = painter.pen()
            brush = painter.brush()
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(with_alpha(t.accent, 0.28 if self.hasFocus() else 0.18))
            painter.drawEllipse(QPointF(x, middle), 10.5, 10.5)
            painter.setPen(pen)
            painter.setBrush(brush)
        painter.drawEllipse(QPointF(x, middle), 6.5, 6.5)

    def changeEvent(self, event: QEvent) -> None:
        if event.type() == QEvent.Type.EnabledChange:
            self.setCursor(Qt.CursorShape.PointingHandCursor if self.isEnabled() else Qt.CursorShape.ArrowCursor)
            self.update()
        super().changeEvent(event)

    def _follow(self, event: QMouseEvent) -> None:
        share = (event.position().x() - 8) / max(1.0, self.width() - 16)
        self.move_to(round(share * self.steps))


class Timeline(QWidget):
    """Where one is in the source: click or drag to go elsewhere. Ticks stand where decoding can start."""

    sought = pyqtSignal(float)

    def __init__(self) -> None:
        super().__init__()
        self._position_s, self._duration_s, self._theme = 0.0, 0.0, DARK
        self._refreshes_s: tuple[float, ...] = ()
        self._pointer: float | None = None
        self.dragging = False
        self.setFixedHeight(24)
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)  # its keys are the window's
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAccessibleName("Timeline")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def set_source(self, duration_s: float | None, refreshes_s: Sequence[float]) -> None:
        self._duration_s, self._refreshes_s = duration_s or 0.0, tuple(refreshes_s)
        self.setEnabled(bool(duration_s))
        self._describe(self._position_s)
        self.update()

    def set_position(self, position_s: float) -> None:
        self._describe(position_s)
        if not self.dragging and abs(position_s - self._position_s) * max(1, self.width()) > 0.4 * self._duration_s:
            self._position_s = position_s
            self.update()

    def apply(self, theme: Theme) -> None:
        self._theme = theme
        self.update()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton and self._duration_s:
            self.dragging = True
            self._go(event.position().x())

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        self._pointer = event.position().x()
        if self.dragging:
            self._go(event.position().x())
        elif self._duration_s:
            QToolTip.showText(event.globalPosition().toPoint(), clock_text(self._time_at(self._pointer)), self)
        self.update()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self.dragging = False
        self.update()

    def leaveEvent(self, event: QEvent) -> None:
        self._pointer = None
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        t, painter = self._theme, QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        left, width, middle = 7.0, self.width() - 14.0, self.height() / 2
        thick = 6.0 if (self._pointer is not None or self.dragging) and self._duration_s else 4.0
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(t.hover))
        painter.drawRoundedRect(QRectF(left, middle - thick / 2, width, thick), thick / 2, thick / 2)
        if not self._duration_s:
            return
        x = left + width * min(1.0, self._position_s / self._duration_s)
        painter.setBrush(QColor(t.accent))
        painter.drawRoundedRect(QRectF(left, middle - thick / 2, x - left, thick), thick / 2, thick / 2)
        if 1 < len(self._refreshes_s) <= width / 4:
            painter.setBrush(QColor(t.faint))
            for at_s in self._refreshes_s:
                painter.drawRoundedRect(QRectF(left + width * at_s / self._duration_s - 0.75, middle + 6, 1.5, 4), 0.7, 0.7)
        if self.hasFocus():
            painter.setBrush(with_alpha(t.accent, 0.28))
            painter.drawEllipse(QPointF(x, middle), 10.5, 10.5)
        painter.setBrush(QColor(t.text if t.name == "dark" else "#ffffff"))
        if t.name == "light":
            painter.setPen(QPen(QColor(t.accent), 1.5))
        radius = 7.0 if self.dragging else 6.0
        painter.drawEllipse(QPointF(x, middle), radius, radius)

    def _describe(self, position_s: float) -> None:
        """Where one is, for screen readers, to the second."""
        text = f"{clock_text(position_s, False)} of {clock_text(self._duration_s, False)}" if self._duration_s else ""
        if text != self.accessibleDescription():
            self.setAccessibleDescription(text)

    def _time_at(self, x: float) -> float:
        return self._duration_s * min(1.0, max(0.0, (x - 7) / max(1.0, self.width() - 14)))

    def _go(self, x: float) -> None:
        self._position_s = self._time_at(x)
        self.sought.emit(self._position_s)
        self.update()


class Dot(QWidget):
    """A small filled circle: the colour of a lane in captions and charts."""

    def __init__(self, colour: str, size: int = 8) -> None:
        super().__init__()
        self.colour = colour
        self.setFixedSize(size, size)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(self.colour))
        painter.drawEllipse(QRectF(self.rect()))


def clock_text(seconds: float, tenths: bool = True) -> str:
    """0:07.4, 12:07.4, 1:02:07"""
    seconds = max(0.0, seconds)
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" + (f".{int(seconds * 10) % 10}" if tenths else "")
