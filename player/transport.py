"""The bar below the pictures: play, step, timeline, time, speed, loop, sound, full screen."""

from __future__ import annotations

from functools import partial

from PyQt6.QtCore import Qt, pyqtSignal
from PyQt6.QtGui import QFont, QResizeEvent
from PyQt6.QtWidgets import QHBoxLayout, QLabel, QMenu, QPushButton, QWidget

from .session import Session
from .theme import BODY, SMALL, Theme, font
from .widgets import Dot, IconButton, Timeline, clock_text, offer

SPEEDS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)


class Transport(QWidget):
    """Signals say what the user wants; refresh() shows what is."""

    play, loop, mute, full_screen, screenshot, record = (pyqtSignal() for _ in range(6))
    step = pyqtSignal(int)
    seek = pyqtSignal(float)
    speed = pyqtSignal(float)

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("bar")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        row = QHBoxLayout(self)
        row.setContentsMargins(12, 7, 12, 7)
        row.setSpacing(4)
        self.play_button = IconButton("play", "Play", "Space", size=22)
        self.back = IconButton("back", "Previous frame", ",")
        self.forward = IconButton("forward", "Next frame", ".")
        self.time = QLabel("0:00.0")
        self.time.setFont(font(BODY, QFont.Weight.Medium))
        self.length = QLabel("")
        self.length.setFont(font(BODY))
        self.length.setProperty("tone", "dim")
        self.live_dot, self.live = Dot("#ffffff", 8), QLabel("LIVE")
        self.live.setFont(font(SMALL, QFont.Weight.DemiBold, spacing=0.6))
        self.timeline = Timeline()
        self.speed_button = QPushButton("1×")
        self.speed_button.setFont(font(BODY, QFont.Weight.Medium))
        self.speed_button.setCursor(Qt.CursorShape.PointingHandCursor)
        self.speed_button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.speed_button.setToolTip("Speed  ([ ])")
        self.speed_button.setAccessibleName("Speed 1×")
        self.speed_button.setFixedWidth(54)
        self.loop_button = IconButton("loop", "Loop", "l", checkable=True)
        self.mute_button = IconButton("sound", "Mute", "m")
        self.shot_button = IconButton("photo", "Screenshot", "s")
        self.record_button = IconButton("record", "Record the comparison", "r", checkable=True)
        self.full_button = IconButton("full", "Full screen", "f")
        row.addWidget(self.play_button)
        row.addWidget(self.back)
        row.addWidget(self.forward)
        row.addSpacing(8)
        row.addWidget(self.time)
        row.addWidget(self.length)
        row.addWidget(self.live_dot)
        row.addWidget(self.live)
        row.addSpacing(8)
        row.addWidget(self.timeline, 1)
        row.addSpacing(8)
        for widget in (
            self.speed_button,
            self.loop_button,
            self.mute_button,
            self.shot_button,
            self.record_button,
            self.full_button,
        ):
            row.addWidget(widget)
        self.play_button.clicked.connect(self.play)
        self.back.clicked.connect(lambda: self.step.emit(-1))
        self.forward.clicked.connect(lambda: self.step.emit(1))
        self.timeline.sought.connect(self.seek)
        self.loop_button.clicked.connect(self.loop)
        self.mute_button.clicked.connect(self.mute)
        self.full_button.clicked.connect(self.full_screen)
        self.shot_button.clicked.connect(self.screenshot)
        self.record_button.clicked.connect(self.record)
        self.speed_button.clicked.connect(self._choose_speed)
        self._named = ""

    @property
    def buttons(self) -> list[IconButton]:
        return self.findChildren(IconButton)

    def set_session(self, session: Session | None) -> None:
        for widget in (
            self.play_button,
            self.back,
            self.forward,
            self.speed_button,
            self.shot_button,
            self.record_button,
            self.loop_button,
        ):
            widget.setEnabled(session is not None)
        live = session is not None and session.live
        self.timeline.set_source(session.duration_s if session else None, session.refreshes_s if session else ())
        self.live_dot.setVisible(live)
        self.live.setVisible(live)
        self.length.setVisible(not live and session is not None)
        self.length.setText(f"/ {clock_text(session.duration_s)}" if session and session.duration_s else "")
        self.loop_button.setVisible(not live)
        self.back.setVisible(session is None or session.duration_s is not None)
        self.loop_button.setChecked(bool(session and session.loop))
        self.mute_button.setVisible(session is not None and (session.audio_path or session.sound) is not None)
        self.refresh(session)

    def refresh(self, session: Session | None) -> None:
        if session is None:
            self.time.setText("0:00.0")
            self._show_action("play")
            return
        position_s = session.position_s
        text = clock_text(position_s)
        if text != self.time.text():
            self.time.setText(text)
        self.timeline.set_position(position_s)
        self._show_action("replay" if session.ended else "play" if session.clock.paused else "pause")
        speed = f"{session.clock.speed:g}×"
        if speed != self.speed_button.text():
            self.speed_button.setText(speed)
            self.speed_button.setAccessibleName(f"Speed {speed}")

    def _show_action(self, icon: str) -> None:
        if icon != self._named:
            self._named = icon
            self.play_button.set_icon(icon)
            self.play_button.name_it({"replay": "Play again", "play": "Play"}.get(icon, "Pause"), "Space")

    def apply(self, theme: Theme) -> None:
        for button in self.buttons:
            button.apply(theme)
        self.timeline.apply(theme)
        self.live_dot.colour = theme.accent

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        width = self.width()
        for widget, least in (
            (self.forward, 420),
            (self.speed_button, 520),
            (self.shot_button, 640),
            (self.record_button, 640),
        ):
            widget.setVisible(width >= least)
        super().resizeEvent(event)

    def _choose_speed(self) -> None:
        menu = QMenu(self)
        for speed in SPEEDS:
            offer(menu, f"{speed:g}×", partial(self.speed.emit, speed))
        menu.exec(self.speed_button.mapToGlobal(self.speed_button.rect().topLeft()))
