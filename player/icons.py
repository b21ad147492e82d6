"""Icons as strokes on a 24 x 24 grid, painted in any colour and at any scale."""

from __future__ import annotations

from PyQt6.QtCore import QByteArray, QRectF, Qt
from PyQt6.QtGui import QIcon, QPainter, QPixmap
from PyQt6.QtSvg import QSvgRenderer

SHAPES = {
    "play": '<path d="M7 4.6v14.8a.6.6 0 0 0 .92.5l11.4-7.4a.6.6 0 0 0 0-1L7.92 4.1A.6.6 0 0 0 7 4.6z" fill="C" '
    'stroke="none"/>',
    "pause": '<rect x="6" y="4.5" width="4.2" height="15" rx="1.1" fill="C" stroke="none"/>'
    '<rect x="13.8" y="4.5" width="4.2" height="15" rx="1.1" fill="C" stroke="none"/>',
    "replay": '<path d="M4 12a8 8 0 1 0 2.5-5.8L4 8.6"/><path d="M4 3.6v5h5"/>',
    "back": '<path d="M14.5 6.5v11L6.5 12z" fill="C"/><path d="M18 6v12"/>',
    "forward": '<path d="M9.5 6.5v11l8-5.5z" fill="C"/><path d="M6 6v12"/>',
    "loop": '<path d="M17 2.8l3.4 3.4L17 9.6"/><path d="M3.6 11.4V10a3.8 3.8 0 0 1 3.8-3.8h13"/>'
    '<path d="M7 21.2l-3.4-3.4L7 14.4"/><path d="M20.4 12.6V14a3.8 3.8 0 0 1-3.8 3.8h-13"/>',
    "sound": '<path d="M11 5.2L6.6 8.8H3v6.4h3.6L11 18.8z" fill="C"/>'
    '<path d="M15 9a4.2 4.2 0 0 1 0 6"/><path d="M17.8 6.2a8.2 8.2 0 0 1 0 11.6"/>',
    "muted": '<path d="M11 5.2L6.6 8.8H3v6.4h3.6L11 18.8z" fill="C"/><path d="M15.5 9.5l5 5"/><path d="M20.5 9.5l-5 5"/>',
    "full": '<path d="M4 9V4h5"/><path d="M15 4h5v5"/><path d="M20 15v5h-5"/><path d="M9 20H4v-5"/>',
    "window": '<path d="M9 4v5H4"/><path d="M20 9h-5V4"/><path d="M15 20v-5h5"/><path d="M4 15h5v5"/>',
    "side": '<rect x="3" y="5.5" width="8" height="13" rx="1.6"/><rect x="13" y="5.5" width="8" height="13" rx="1.6"/>',
    "wipe": '<rect x="3" y="5.5" width="18" height="13" rx="2"/><path d="M12 3v18"/>',
    "single": '<rect x="3" y="5.5" width="18" height="13" rx="2"/>',
    "three": '<rect x="2.5" y="6.5" width="5" height="11" rx="1.2"/>'
    '<rect x="9.5" y="6.5" width="5" height="11" rx="1.2"/>'
    '<rect x="16.5" y="6.5" width="5" height="11" rx="1.2"/>',
    "info": '<circle cx="12" cy="12" r="8.6"/><path d="M12 11.2v5"/><path d="M12 7.8v.2"/>',
    "panel": '<rect x="3" y="4.5" width="18" height="15" rx="2.2"/><path d="M15 4.5v15"/>',
    "charts": '<path d="M3.5 19.5h17"/><path d="M4 14.5l4.5-5 4 3.4L20 5.5"/>',
    "camera": '<rect x="2.8" y="6.5" width="12.6" height="11" rx="2.2"/><path d="M15.4 11l5.8-3.2v8.4L15.4 13z"/>',
    "photo": '<path d="M8.6 5.5L7.2 8H4.4A1.6 1.6 0 0 0 2.8 9.6v8.3a1.6 1.6 0 0 0 1.6 1.6h15.2a1.6 1.6 0 0 0 '
    "1.6-1.6V9.6"
    'A1.6 1.6 0 0 0 19.6 8h-2.8l-1.4-2.5z"/><circle cx="12" cy="13.4" r="3.4"/>',
    "record": '<circle cx="12" cy="12" r="8.4"/><circle cx="12" cy="12" r="4" fill="C" stroke="none"/>',
    "open": '<path d="M3 18V6.4a1.6 1.6 0 0 1 1.6-1.6h4.2l2.2 2.6h7.4A1.6 1.6 0 0 1 20 9v1.4"/>'
    '<path d="M3 18.2l2.6-6.8a1.6 1.6 0 0 1 1.5-1h13.1a1 1 0 0 1 1 1.4l-2.2 6.4a1.6 1.6 0 0 1-1.5 '
    '1H4.2A1.2 1.2 0 0 1 3 18.2z"/>',
    "help": '<circle cx="12" cy="12" r="8.6"/><path d="M9.6 9.6a2.5 2.5 0 1 1 3.6 2.2c-.8.4-1.2.9-1.2 1.9"/>'
    '<path d="M12 16.6v.2"/>',
    "moon": '<path d="M19.6 14.2A8 8 0 1 1 9.8 4.4a6.4 6.4 0 0 0 9.8 9.8z"/>',
    "sun": '<circle cx="12" cy="12" r="4"/>'
    '<path d="M12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6L7 7M17 17l1.4 1.4M18.4 5.6L17 7M7 17l-1.4 1.4"/>',
    "chevron": '<path d="M7 10l5 5 5-5"/>',
    "film": '<rect x="3" y="4.5" width="18" height="15" rx="2.2"/>'
    '<path d="M7.5 4.5v15M16.5 4.5v15M3 12h18M3 8.2h4.5M3 15.8h4.5M16.5 8.2H21M16.5 15.8H21"/>',
}


def paint(painter: QPainter, name: str, rect: QRectF, colour: str) -> None:
    """The icon within rect."""
    shape = SHAPES[name].replace('"C"', f'"{colour}"')
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="{colour}" stroke-width="1.7" '
        f'stroke-linecap="round" stroke-linejoin="round">{shape}</svg>'
    )
    QSvgRenderer(QByteArray(svg.encode())).render(painter, rect)


def icon(name: str, normal: str, active: str | None = None, disabled: str | None = None) -> QIcon:
    """active: under the pointer; both default to normal."""
    made = QIcon()
    modes = {QIcon.Mode.Normal: normal, QIcon.Mode.Active: active or normal, QIcon.Mode.Disabled: disabled or normal}
    for scale in (1, 2, 3):
        for mode, colour in modes.items():
            pixmap = QPixmap(20 * scale, 20 * scale)
            pixmap.fill(Qt.GlobalColor.transparent)
            painter = QPainter(pixmap)
            paint(painter, name, QRectF(0, 0, 20 * scale, 20 * scale), colour)
            painter.end()
            pixmap.setDevicePixelRatio(scale)
            made.addPixmap(pixmap, mode)
    return made
