"""The picture area: one to three lanes side by side, a wipe between two, or one alone, with a caption under each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
from PyQt6.QtCore import QEvent, QPointF, QRectF, QSize, Qt, pyqtSignal
from PyQt6.QtGui import QColor, QFont, QFontMetricsF, QImage, QMouseEvent, QPainter, QPainterPath, QPaintEvent, QPen, QPolygonF
from PyQt6.QtWidgets import QSizePolicy, QWidget

from mcode.frame import Frame

from .lanes import Lane
from .theme import BODY, DARK, SMALL, Theme, font, with_alpha, wrapped

GAP = 14.0
CAPTION = 34.0
SMALL_CAPTION = 24.0
MARGIN = 18.0
SMALL_BELOW = 520


class Arrangement(Enum):
    """How the lanes are shown; the values are the keys that choose them."""

    SIDE_BY_SIDE = "1"
    WIPE = "2"
    SINGLE = "3"


@dataclass(frozen=True)
class Place:
    """Where a lane is painted: its picture, its caption below."""

    lane: Lane
    picture: QRectF
    caption: QRectF


class VideoView(QWidget):
    """Paints the newest frame of each lane. wipe: the divider's place, 0 to 1."""

    clicked = pyqtSignal()
    double_clicked = pyqtSignal()

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("canvas")
        self.setAccessibleName("Pictures")
        self.setMinimumSize(120, 90)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.theme: Theme = DARK
        self.lanes: Sequence[Lane] = ()
        self.arrangement = Arrangement.SIDE_BY_SIDE
        self.show_original = False
        self.wipe = 0.5
        self.captions = True
        self.bare = False  # full screen: no margins
        self._dragging = False
        self._scaled: dict[str, tuple[int, QSize, QImage]] = {}

    def sizeHint(self) -> QSize:
        return QSize(960, 540)

    def apply(self, theme: Theme) -> None:
        self.theme = theme
        self.update()

    def set_lanes(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes
        self._scaled.clear()
        self.update()

    def visible_lanes(self) -> list[Lane]:
        """What is shown: the original only when asked for, or where a wipe would have nothing else to compare with."""
        coded = [lane for lane in self.lanes if lane.name != "original"]
        original = [lane for lane in self.lanes if lane.name == "original"]
        if self.arrangement is Arrangement.SINGLE:
            return coded[:1] or original[:1]
        if self.arrangement is Arrangement.WIPE:
            others = original if self.show_original or len(coded) < 2 else coded[1:2]
            return coded[:1] + others
        return coded + (original if self.show_original or len(coded) < 2 else [])

    def places(self, area: QRectF | None = None) -> list[Place]:
        """Where each visible lane stands within area (the whole widget by default)."""
        area = area or QRectF(self.rect())
        lanes = self.visible_lanes()
        if not lanes:
            return []
        small = area.width() < SMALL_BELOW
        margin = 0.0 if self.bare else 8.0 if small else MARGIN
        caption = 0.0 if not self.captions else SMALL_CAPTION if small else CAPTION
        gap = 6.0 if small else GAP
        inner = area.adjusted(margin, margin, -margin, -(margin / 2 if caption else margin))
        aspect = self._aspect(lanes)
        if self.arrangement is Arrangement.WIPE and len(lanes) == 2:
            height = max(1.0, inner.height() - caption)
            picture = _fit(aspect, QRectF(inner.left(), inner.top(), inner.width(), height))
            half = picture.width() / 2
            below = QRectF(picture.left(), picture.bottom(), half, caption)
            return [Place(lanes[0], picture, below), Place(lanes[1], picture, below.translated(half, 0))]
        across, down = self._grid(len(lanes), aspect, inner, caption, gap)
        width = (inner.width() - gap * (across - 1)) / across
        height = max(1.0, (inner.height() - gap * (down - 1)) / down - caption)
        fitted = _fit(aspect, QRectF(0, 0, width, height))
        w, h = fitted.width(), fitted.height()
        left = inner.left() + (inner.width() - across * w - (across - 1) * gap) / 2
        top = inner.top() + (inner.height() - down * (h + caption) - (down - 1) * gap) / 2
        made = []
        for index, lane in enumerate(lanes):
            x = left + (index % across) * (w + gap)
            if down > 1 and index // across == down - 1 and len(lanes) % across:
                x += (across - len(lanes) % across) * (w + gap) / 2
            y = top + (index // across) * (h + caption + gap)
            x, y = round(x), round(y)
            made.append(Place(lane, QRectF(x, y, w, h), QRectF(x, y + h, w, caption)))
        return made

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        self.render_to(painter, QRectF(self.rect()))

    def picture(self, size: QSize) -> QImage:
        """What the view shows, at any size: for recordings and screenshots."""
        made = QImage(size, QImage.Format.Format_RGB888)
        painter = QPainter(made)
        self.render_to(painter, QRectF(0, 0, size.width(), size.height()), cache=False)
        painter.end()
        return made

    def render_to(self, painter: QPainter, area: QRectF, cache: bool = True) -> None:
        painter.setRenderHints(QPainter.RenderHint.Antialiasing | QPainter.RenderHint.SmoothPixmapTransform)
        painter.fillRect(area, QColor("#000000" if self.bare else self.theme.canvas))
        places = self.places(area)
        wiping = self.arrangement is Arrangement.WIPE and len(places) == 2
        for index, place in enumerate(places):
            painter.save()
            if wiping and index == 1:
                x = place.picture.left() + place.picture.width() * self.wipe
                painter.setClipRect(QRectF(x, place.picture.top(), place.picture.right() - x, place.picture.height()))
            self._paint_picture(painter, place, cache)
            painter.restore()
        if wiping:
            self._paint_divider(painter, places[0].picture)
        if self.captions:
            for index, place in enumerate(places):
                self._paint_caption(painter, place, right=wiping and index == 1)

    def _paint_picture(self, painter: QPainter, place: Place, cache: bool) -> None:
        radius = 0.0 if self.bare else 8.0
        path = QPainterPath()
        path.addRoundedRect(place.picture, radius, radius)
        frame = place.lane.newest
        if frame is None:
            painter.fillPath(path, QColor(self.theme.surface))
            self._paint_waiting(painter, place)
            return
        device = painter.device()
        target = place.picture.size() * (device.devicePixelRatioF() if device is not None else 1.0)
        image = self._scaled_image(place.lane, frame, QSize(math.ceil(target.width()), math.ceil(target.height())), cache)
        painter.setClipPath(path, Qt.ClipOperation.IntersectClip)
        painter.drawImage(place.picture, image)

    def _paint_waiting(self, painter: QPainter, place: Place) -> None:
        painter.setPen(QColor(self.theme.dim))
        painter.setFont(font(SMALL))
        painter.drawText(place.picture.adjusted(8, 4, -8, -4), place.lane.waiting, wrapped(Qt.AlignmentFlag.AlignCenter))

    def _scaled_image(self, lane: Lane, frame: Frame, size: QSize, cache: bool) -> QImage:
        """The frame at the size it is painted at: area means to shrink, but linear where it is by little, which takes a
        seventh of the time; cubic to grow. Done once per frame."""
        held = self._scaled.get(lane.name)
        if held is not None and held[0] == lane.serial and held[1] == size:
            return held[2]
        scale = size.width() / frame.width
        kind = cv2.INTER_CUBIC if scale >= 1 else cv2.INTER_LINEAR if scale > 2 / 3 else cv2.INTER_AREA
        rgb = cv2.resize(frame.rgb, (size.width(), size.height()), interpolation=kind)
        image = image_of(rgb)
        if cache:
            self._scaled[lane.name] = lane.serial, size, image
        return image

    def _paint_divider(self, painter: QPainter, picture: QRectF) -> None:
        x = picture.left() + picture.width() * self.wipe
        painter.setPen(QPen(with_alpha("#000000", 0.35), 4))
        painter.drawLine(QPointF(x, picture.top()), QPointF(x, picture.bottom()))
        painter.setPen(QPen(QColor("#ffffff"), 1.6))
        painter.drawLine(QPointF(x, picture.top()), QPointF(x, picture.bottom()))
        middle = QPointF(x, picture.center().y())
        painter.setPen(QPen(with_alpha("#000000", 0.25), 1))
        painter.setBrush(QColor("#ffffff"))
        painter.drawEllipse(middle, 13, 13)
        painter.setPen(QPen(QColor("#20252d"), 1.8, cap=Qt.PenCapStyle.RoundCap, join=Qt.PenJoinStyle.RoundJoin))
        for side in (-1, 1):
            tip = middle + QPointF(side * 7.5, 0)
            painter.drawPolyline(QPolygonF([tip + QPointF(-side * 3.5, -3.5), tip, tip + QPointF(-side * 3.5, 3.5)]))

    def _paint_caption(self, painter: QPainter, place: Place, right: bool) -> None:
        """A dot and the lane's name on the left; what it costs and how good it is on the right."""
        t, area = self.theme, place.caption
        small = area.height() < CAPTION
        colour = lane_colour(t, place.lane.name)
        name_font, value_font = font(SMALL if small else BODY, QFont.Weight.DemiBold), font(SMALL if small else BODY)
        area = area.adjusted(10 if right else 2, 0, -2, 0)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(colour))
        painter.drawEllipse(QPointF(area.left() + 4, area.center().y()), 3.6, 3.6)
        painter.setPen(QColor("#ffffff" if self.bare else t.text))
        painter.setFont(name_font)
        label = area.adjusted(15, 0, 0, 0)
        painter.drawText(label, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, place.lane.title)
        name_end = label.left() + QFontMetricsF(name_font).horizontalAdvance(place.lane.title) + 14
        painter.setFont(value_font)
        painter.setPen(QColor("#c9d0da" if self.bare else t.dim))
        metrics = QFontMetricsF(value_font)
        gap, x = 10.0 if small else 18.0, area.right()
        values = caption_values(place.lane)
        if sum(metrics.horizontalAdvance(text) + gap for text in values) - gap > x - name_end:
            values = caption_values(place.lane, notes=False)
        for text in reversed(values):
            width = metrics.horizontalAdvance(text)
            if x - width < name_end:
                break
            painter.drawText(QRectF(x - width, area.top(), width + 1, area.height()), Qt.AlignmentFlag.AlignVCenter, text)
            x -= width + gap

    def _aspect(self, lanes: Sequence[Lane]) -> float:
        for lane in lanes:
            if lane.newest is not None:
                return lane.newest.width / lane.newest.height
        return 16 / 9

    def _grid(self, count: int, aspect: float, inner: QRectF, caption: float, gap: float) -> tuple[int, int]:
        """Columns and rows that make the pictures largest."""

        def side(across: int) -> float:
            down = -(-count // across)
            width = (inner.width() - gap * (across - 1)) / across
            return min(width, ((inner.height() - gap * (down - 1)) / down - caption) * aspect)

        across = max(range(1, count + 1), key=lambda a: (side(a), a))
        return across, -(-count // across)

    # The wipe's divider

    def _near_divider(self, position: QPointF) -> bool:
        places = self.places()
        if self.arrangement is not Arrangement.WIPE or len(places) != 2:
            return False
        return places[0].picture.adjusted(-12, 0, 12, 0).contains(position)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() != Qt.MouseButton.LeftButton:
            return
        if self._near_divider(event.position()):
            self._dragging = True
            self._drag(event.position())
        else:
            self.clicked.emit()

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if self._dragging:
            self._drag(event.position())
        near = self._near_divider(event.position())
        self.setCursor(Qt.CursorShape.SplitHCursor if near or self._dragging else Qt.CursorShape.ArrowCursor)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self._dragging = False

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton and not self._near_divider(event.position()):
            self.double_clicked.emit()

    def leaveEvent(self, event: QEvent) -> None:
        self.unsetCursor()

    def _drag(self, position: QPointF) -> None:
        places = self.places()
        if places:
            picture = places[0].picture
            self.wipe = min(1.0, max(0.0, (position.x() - picture.left()) / max(1.0, picture.width())))
            self.update()


def lane_colour(theme: Theme, name: str) -> str:
    return {"mcode": theme.accent, "baseline": theme.baseline}.get(name, theme.faint)


def caption_values(lane: Lane, notes: bool = True) -> list[str]:
    """Rate and PSNR as the caption shows them, as far as they are known."""
    c = lane.counters
    values = []
    if lane.name != "original":
        kbps = c.rate_kbps
        if lane.rate_text:
            values.append(lane.rate_text)
        elif kbps:
            values.append(f"{rate_text(kbps)} kbit/s" + (f", {lane.note}" if lane.note and notes else ""))
        if math.isfinite(c.psnr_db):
            values.append(f"{c.psnr_db:.1f} dB")
        elif not lane.has_original:
            values.append("PSNR unknown")
    return values


def rate_text(kbps: float) -> str:
    return f"{kbps:.2f}" if kbps < 10 else f"{kbps:.1f}" if kbps < 100 else f"{kbps:,.0f}"


def image_of(rgb: np.ndarray) -> QImage:
    """A QImage with its own copy of uint8 (H, W, 3)."""
    rgb = np.ascontiguousarray(rgb)
    height, width, _ = rgb.shape
    # PyQt6 takes any buffer, here and back; its stubs know bytes alone.
    return QImage(rgb.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()  # type: ignore[call-overload]


def array_of(image: QImage) -> np.ndarray:
    """uint8 (H, W, 3), a copy."""
    image = image.convertToFormat(QImage.Format.Format_RGB888)
    bits = image.constBits()
    bits.setsize(image.sizeInBytes())
    rows = np.frombuffer(bits, np.uint8).reshape(image.height(), image.bytesPerLine())  # type: ignore[call-overload]
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()


def _fit(aspect: float, area: QRectF) -> QRectF:
    """The largest centred rectangle of that aspect within area."""
    width = min(area.width(), area.height() * aspect)
    height = round(width / aspect)
    width = round(width)  # whole pixels: pictures are then copied, not resampled
    return QRectF(round(area.center().x() - width / 2), round(area.center().y() - height / 2), width, height)
