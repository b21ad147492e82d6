"""The window: header, pictures, controls, charts, transport, and the keys. It holds one session at a time."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PyQt6.QtCore import QEvent, QObject, QSettings, QSize, Qt, QThread, QTimer, pyqtSignal
from PyQt6.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent, QFont, QKeyEvent, QResizeEvent
from PyQt6.QtWidgets import (
    QApplication,
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QInputDialog,
    QLabel,
    QMenu,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from mcode.errors import McodeError
from mcode.manifold import list_manifolds

from .audio import Audio, LiveAudio, has_sound_card, open_audio
from .charts import Charts
from .controls import Controls
from .lanes import Lane
from .overlay import Busy, Keys, Message, Stats, Welcome
from .recorder import FPS as RECORD_FPS
from .recorder import Recorder
from .session import Session, Settings
from .sources import STREAM_SCHEME, open_source
from .theme import BODY, DARK, LIGHT, TITLE, Theme, font, palette, style_sheet
from .transport import SPEEDS, Transport
from .view import Arrangement, VideoView, array_of
from .widgets import IconButton, Segments, offer

TICK_MS = 15
RECORD_SIZE = QSize(1280, 720)
PANEL_WIDTH = 272
PANEL_FROM, CHARTS_FROM = 860, 560
PANEL_FITS = 420
"""Narrower windows show no panel even when asked: beside it no picture would fit."""
MOST_RECENT, MOST_NOTICES = 8, 3
MOST_STEM_BYTES = 200
"""Of a source's name in that of a recording: file systems take 255 bytes, and the unfinished file has a longer name."""
HIDE_POINTER_MS = 2500
REPEATED = {
    *(Qt.Key.Key_Left, Qt.Key.Key_Right, Qt.Key.Key_Down, Qt.Key.Key_Up),
    *(Qt.Key.Key_Period, Qt.Key.Key_Comma, Qt.Key.Key_BracketLeft, Qt.Key.Key_BracketRight),
}
"""Keys that go on acting while they are held: seek, step, speed."""
FIRST_ADDRESS = "rtp://127.0.0.1:5004"

Opener = Callable[..., Session]


class _Opening(QThread):
    """Opens a source away from the window's thread: files and networks may be slow."""

    done = pyqtSignal(object, object)  # session or None, message or None

    def __init__(self, open_it: Callable[[], Session]) -> None:
        super().__init__()
        self._open_it = open_it

    def run(self) -> None:
        try:
            self.done.emit(self._open_it(), None)
        except (McodeError, OSError) as error:
            self.done.emit(None, " ".join(str(error).split()))
        except Exception as error:
            self.done.emit(None, f"{type(error).__name__}: {' '.join(str(error).split())}")


class Window(QWidget):
    """opener: turns what the user names into a session (sources.open_source). remember: keep recent files and looks."""

    opened = pyqtSignal(object)
    failed = pyqtSignal(str)

    def __init__(self, *, opener: Opener = open_source, remember: bool = True, sound: bool = True) -> None:
        super().__init__()
        self.setObjectName("window")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setWindowTitle("MCode")
        self.setAcceptDrops(True)
        self.setMinimumSize(400, 240)
        self.resize(1280, 760)
        self._opener, self._sound = opener, sound
        self._memory = QSettings("mcode", "player") if remember else None
        self.session: Session | None = None
        self.audio: Audio | LiveAudio | None = None
        self._lost_audio: Audio | LiveAudio | None = None  # its card does not answer
        self._heard_jump = 0
        self._ended_s: float | None = None  # where a clip had ended when its picture was clicked
        self.recorder: Recorder | None = None
        self._opening: list[_Opening] = []
        self._newest: _Opening | None = None  # of them; the others' sessions are closed as they come
        self._settings = Settings()
        self._manifold: str | None = None
        self._muted = False
        self._described: tuple[object, ...] = ()
        self._lanes: list[Lane] = []
        self._told: list[str] = []  # the notices in the message
        self._panel_wanted, self._charts_wanted = True, True
        self._charted_s = self._recorded_s = self._record_start_s = 0.0
        self.theme = LIGHT if self._remembered("theme", "dark") == "light" else DARK
        self._build()
        self.apply(self.theme)
        self.show_session(None)
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self.tick)
        self._timer.start(TICK_MS)
        self._pointer_timer = QTimer(self)
        self._pointer_timer.setSingleShot(True)
        self._pointer_timer.timeout.connect(self._hide_bars)
        _application().installEventFilter(self)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setFocus()

    # Layout

    def _build(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self.header = QWidget()
        self.header.setObjectName("bar")
        self.header.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        row = self._header_row = QHBoxLayout(self.header)
        row.setContentsMargins(18, 8, 12, 8)
        row.setSpacing(4)
        self.brand = QLabel("MCode")
        self.brand.setFont(font(15, QFont.Weight.Bold, spacing=-0.2))
        self.title = QLabel("")
        self.title.setFont(font(TITLE))
        self.title.setProperty("tone", "dim")
        self.title.setTextFormat(Qt.TextFormat.PlainText)  # a file may be called <b>
        self.title.setMinimumWidth(1)  # 0 is none: the name's own
        row.addWidget(self.brand)
        row.addSpacing(12)
        row.addWidget(self.title, 1)
        self.views = Segments(
            "View",
            (
                (Arrangement.SIDE_BY_SIDE, "Side by side"),
                (Arrangement.WIPE, "Wipe"),
                (Arrangement.SINGLE, "MCode only"),
            ),
            stretch=False,
        )
        for arrangement in Arrangement:
            self.views.button(arrangement).setToolTip(f"({arrangement.value})")
        self.original_button = IconButton("three", "Show the original", "4", checkable=True)
        self.stats_button = IconButton("info", "Stats", "i", checkable=True)
        self.charts_button = IconButton("charts", "Charts", "g", checkable=True)
        self.panel_button = IconButton("panel", "Controls", "c", checkable=True)
        self.open_button = IconButton("open", "Open", "o")
        self.theme_button = IconButton("sun", "Dark or light", "t")
        self.help_button = IconButton("help", "Keys", "?")
        row.addWidget(self.views)
        row.addSpacing(10)
        for button in (
            self.original_button,
            self.stats_button,
            self.charts_button,
            self.panel_button,
            self.open_button,
            self.theme_button,
            self.help_button,
        ):
            row.addWidget(button)
        column.addWidget(self.header)
        self.header_rule = self._rule(horizontal=True)
        column.addWidget(self.header_rule)

        middle = QHBoxLayout()
        middle.setSpacing(0)
        left = QVBoxLayout()
        left.setSpacing(0)
        self.pages = QStackedWidget()
        self.pages.setMinimumWidth(120)  # the page that is hidden needs no room beside the panel
        self.welcome, self.view = Welcome(), VideoView()
        self.pages.addWidget(self.welcome)
        self.pages.addWidget(self.view)
        left.addWidget(self.pages, 1)
        self.charts_rule = self._rule(horizontal=True)
        self.charts = Charts(self.theme)
        self.charts.setFixedHeight(158)
        left.addWidget(self.charts_rule)
        left.addWidget(self.charts)
        middle.addLayout(left, 1)
        self.panel_rule = self._rule(horizontal=False)
        self.controls = Controls(self.theme)
        self.controls.setFixedWidth(PANEL_WIDTH)
        middle.addWidget(self.panel_rule)
        middle.addWidget(self.controls)
        column.addLayout(middle, 1)
        self.transport_rule = self._rule(horizontal=True)
        self.transport = Transport()
        column.addWidget(self.transport_rule)
        column.addWidget(self.transport)

        self.stats, self.busy = Stats(self.view), Busy(self.view)
        self.message, self.keys = Message(self.pages), Keys(self)
        self.pages.currentChanged.connect(lambda _: self.message.raise_())
        self._connect()

    def _rule(self, horizontal: bool) -> QFrame:
        rule = QFrame()
        rule.setObjectName("rule")
        rule.setFixedHeight(1) if horizontal else rule.setFixedWidth(1)
        return rule

    def _connect(self) -> None:
        self.views.chosen.connect(self.arrange)
        self.original_button.clicked.connect(self.toggle_original)
        self.stats_button.clicked.connect(self.toggle_stats)
        self.charts_button.clicked.connect(self.toggle_charts)
        self.panel_button.clicked.connect(self.toggle_panel)
        self.open_button.clicked.connect(self.show_open_menu)
        self.theme_button.clicked.connect(self.toggle_theme)
        self.help_button.clicked.connect(self.toggle_keys)
        self.welcome.wants_open.connect(self.ask_open)
        self.welcome.wants_demo.connect(lambda: self.open("demo:"))
        self.welcome.wants_camera.connect(lambda: self.open("camera:0"))
        self.welcome.wants_recent.connect(self.open)
        self.controls.changed.connect(self.change_settings)
        self.view.clicked.connect(self.click_picture)
        self.view.double_clicked.connect(self.double_click_picture)
        bar = self.transport
        bar.play.connect(self.toggle_pause)
        bar.step.connect(self.step)
        bar.seek.connect(self.seek)
        bar.speed.connect(self.set_speed)
        bar.loop.connect(self.toggle_loop)
        bar.mute.connect(self.toggle_mute)
        bar.full_screen.connect(self.toggle_full_screen)
        bar.screenshot.connect(lambda: self.screenshot())
        bar.record.connect(self.toggle_recording)

    def apply(self, theme: Theme) -> None:
        self.theme = theme
        app = _application()
        app.setPalette(palette(theme))
        app.setFont(font(BODY))
        self.setStyleSheet(style_sheet(theme))
        for part in (self.view, self.charts, self.controls, self.transport, self.welcome):
            part.apply(theme)
        for overlay in (self.message, self.keys, self.busy):
            overlay.theme = theme
        for button in self.header.findChildren(IconButton):
            button.apply(theme)
        self.theme_button.set_icon("sun" if theme is DARK else "moon")

    # The session

    def open(self, source: str) -> None:
        """What sources.open_source takes: a path, "camera:0", "demo:" ... Returns at once; opened or failed follows."""
        self.message.hide()  # before a recording ends, which tells where it is
        self.show_session(None)
        self.pages.setCurrentWidget(self.view)
        self.busy.setGeometry(self.view.rect())
        self.busy.say("Opening")
        self.title.setText(Path(source).name or source)
        settings = replace(self._settings, manifold=self._manifold)
        opening = _Opening(lambda: self._opener(source, settings))
        opening.done.connect(lambda session, problem: self._opened(opening, source, session, problem))
        self._opening.append(opening)
        self._newest = opening
        opening.start()

    def _opened(self, opening: _Opening, source: str, session: Session | None, problem: str | None) -> None:
        opening.wait()
        self._opening.remove(opening)
        if opening is not self._newest:
            if session is not None:
                session.close(0)
            return
        if session is None:
            self.show_session(None)
            self.message.say(problem or "It cannot be opened", problem=True)
            self.failed.emit(problem or "")
            return
        self._remember_recent(source)
        self.show_session(session)
        session.start()
        self.opened.emit(session)

    def show_session(self, session: Session | None) -> None:
        """Make it the one that plays; the one before is closed."""
        self._end_session()
        self.session = session
        self._show_lanes(session.lanes if session else [])
        self.transport.set_session(session)
        self.pages.setCurrentWidget(self.view if session else self.welcome)
        self.busy.say(session.busy if session else None)
        self.welcome.set_recent(self.recent())
        self.title.setText(session.title if session else "")
        self.setWindowTitle(f"{session.title} – MCode" if session else "MCode")
        if session is not None:
            self._show_settings(session)
            self.controls.note.setText(session.channel_note)
            if self._sound:
                if session.sound is not None and has_sound_card():
                    self.audio = LiveAudio(session.sound)
                elif session.audio_path:
                    self.audio = open_audio(session.audio_path)
                if self.audio is not None:
                    self.audio.muted = self._muted
        self._settle()

    def _end_session(self) -> None:
        self._stop_recording()
        self._end_sound()
        if self.session is not None:
            self.session.close()
            self.session = None

    def _end_sound(self) -> None:
        """Where the card does not answer, for good."""
        audio, self.audio = self.audio, None
        if audio is None:
            return
        audio.halt()
        if not audio.answers(time.monotonic()):
            self._sound, self._lost_audio = False, audio
            self.message.say("The sound card does not answer; playing without sound", problem=True)

    @property
    def lost_sound(self) -> bool:
        """Whether a sound card did not answer. Qt waits for it when it ends, half a minute or for ever."""
        return self._lost_audio is not None

    def _show_settings(self, session: Session) -> None:
        """In the controls. Of the manifolds those that can be chosen, and first the session's own where it is not
        installed."""
        choices: list[tuple[str | None, str]] = [(info.name, info.name) for info in list_manifolds()]
        chosen = session.settings.manifold
        name = getattr(session.model, "name", "") or Path(chosen or "").stem
        if "manifold" not in session.adjustable:
            choices = []
        if chosen not in dict(choices):
            choices.insert(0, (chosen, name or "–"))
        self.controls.set_manifolds(choices, chosen)
        self.controls.set_model(session.model)
        self.controls.show_settings(session.settings, session.adjustable)

    def _show_lanes(self, lanes: list[Lane]) -> None:
        self._lanes = lanes
        self.view.set_lanes(lanes)
        self.charts.set_lanes(lanes)
        self.original_button.setEnabled(any(lane.name == "original" for lane in lanes) and len(lanes) > 2)
        self.views.setVisible(len(lanes) > 1)
        self.views.value = self.view.arrangement

    def start_with(self, settings: Settings) -> None:
        """What the next session opened starts with."""
        self._settings, self._manifold = settings, settings.manifold

    def change_settings(self, settings: Settings) -> None:
        """From the controls: acts at once. What cannot be set here is the source's own, and not for the next one."""
        if self.session is not None:
            chosen = {name: getattr(settings, name) for name in self.session.adjustable}
            self._settings = replace(self._settings, **chosen)
            self.session.settings = settings

    def tick(self) -> None:
        """What is due now, onto the screen."""
        session, now_s = self.session, time.monotonic()
        if session is None:
            return
        self._keep_sound(session, now_s)
        changed = session.tick()
        if session.lanes is not self._lanes and session.lanes != self._lanes:
            self._show_lanes(session.lanes)
        if changed:
            self.view.update()
        if session.failed:
            problem, session.failed = session.failed, None
            if all(lane.newest is None for lane in session.lanes):
                self.show_session(None)
            self.message.say(problem, problem=True)
            self.failed.emit(problem)
            return
        described = (session.busy is None, session.duration_s, id(session.model))
        if described != self._described:
            self._described = described
            self.transport.set_session(session)
            self._show_settings(session)
        elif session.settings != self.controls.settings:  # it changed them itself
            self.controls.show_settings(session.settings, session.adjustable)
        if session.notices:
            self._tell([session.notices.popleft() for _ in range(len(session.notices))])
        self.busy.say(session.busy)
        if session.busy:
            self.busy.setGeometry(self.view.rect())
        self.transport.refresh(session)
        if not session.clock.paused:
            session.sample(now_s)
        if now_s - self._charted_s >= 0.25:
            self._charted_s = now_s
            if self.charts.isVisible():
                self.charts.refresh(session.history)
            if self.stats.isVisible():
                self.stats.show_rows(session.stats())
            self.view.update()
        self._record(now_s)

    def _tell(self, notices: list[str]) -> None:
        """Those that are still to be read stay beside the new ones."""
        unread = self._told if self.message.isVisible() and self.message.text == "; ".join(self._told) else []
        self._told = [" ".join(notice.split()) for notice in dict.fromkeys([*unread, *notices])][-MOST_NOTICES:]
        self.message.say("; ".join(self._told))

    def _keep_sound(self, session: Session, now_s: float) -> None:
        """Sound runs while pictures run at speed 1; then it is the clock. Without a card that answers, none from then on."""
        audio = self.audio
        if audio is None:
            return
        if not audio.answers(now_s):
            self._end_sound()
            return
        if isinstance(audio, LiveAudio):
            audio.feed(now_s, session.clock.paused)
            return
        wanted = not session.clock.paused and session.clock.speed == 1.0 and not session.ended and session.busy is None
        if wanted and (not audio.playing or session.jump != self._heard_jump):
            self._heard_jump = session.jump
            audio.play_from(session.position_s)
        elif not wanted and audio.playing:
            audio.halt()
        elif wanted and (heard_s := audio.heard_s) is not None:
            if abs(heard_s - session.position_s) > 1.0:
                audio.play_from(session.position_s)
            else:
                session.follow_sound(heard_s)

    # What the user can do

    def click_picture(self) -> None:
        session = self.session
        self._ended_s = session.position_s if session is not None and session.ended else None
        self.toggle_pause()

    def double_click_picture(self) -> None:
        self.toggle_pause()  # takes back what the first click of the two did
        if self.session is not None and self._ended_s is not None:
            self.session.seek(self._ended_s)
        self.toggle_full_screen()

    def toggle_pause(self) -> None:
        if self.session is not None:
            self.session.pause(not self.session.clock.paused)

    def seek(self, position_s: float) -> None:
        if self.session is not None:
            self.session.seek(position_s)

    def seek_by(self, seconds: float) -> None:
        if self.session is not None and self.session.duration_s is not None:
            self.session.seek(self.session.place_s + seconds)

    def step(self, frames: int) -> None:
        if self.session is not None:
            self.session.step(frames)

    def set_speed(self, speed: float) -> None:
        if self.session is not None:
            self.session.clock.speed = speed

    def change_speed(self, direction: int) -> None:
        if self.session is not None:
            speeds = [s for s in SPEEDS if (s - self.session.clock.speed) * direction > 1e-9]
            if speeds:
                self.set_speed(min(speeds) if direction > 0 else max(speeds))
                self.message.say(f"Speed {self.session.clock.speed:g}×")

    def toggle_loop(self) -> None:
        if self.session is not None and not self.session.live:
            self.session.loop = not self.session.loop
            self.transport.loop_button.setChecked(self.session.loop)

    def toggle_mute(self) -> None:
        self._muted = not self._muted
        if self.audio is not None:
            self.audio.muted = self._muted
        self.transport.mute_button.set_icon("muted" if self._muted else "sound")
        self.transport.mute_button.name_it("Unmute" if self._muted else "Mute", "m")

    def arrange(self, arrangement: Arrangement) -> None:
        self.view.arrangement = arrangement
        self.views.value = arrangement
        self._settle_captions()
        self.view.update()

    def toggle_original(self) -> None:
        if not self.original_button.isEnabled():
            return
        self.view.show_original = not self.view.show_original
        self.original_button.setChecked(self.view.show_original)
        self.view.update()

    def toggle_stats(self) -> None:
        shown = self.stats.isHidden()  # also on the page that is not shown
        self.stats.setVisible(shown)
        self.stats_button.setChecked(shown)
        if shown and self.session is not None:
            self.stats.show_rows(self.session.stats())
            self.stats.raise_()

    def toggle_charts(self) -> None:
        if not self.charts_button.isEnabled():
            return
        self._charts_wanted = not self.charts.isVisible()
        self._settle(asked=self.charts)

    def toggle_panel(self) -> None:
        self._panel_wanted = not self.controls.isVisible()
        self._settle(asked=self.controls)
        if self._panel_wanted and self.session is not None and self.width() < PANEL_FITS:
            self.message.say("The window is too narrow for the controls")

    def toggle_theme(self) -> None:
        self.apply(LIGHT if self.theme is DARK else DARK)
        if self._memory is not None:
            self._memory.setValue("theme", self.theme.name)

    def toggle_keys(self) -> None:
        self.keys.setGeometry(self.rect())
        self.keys.setVisible(not self.keys.isVisible())
        self.keys.raise_()

    def toggle_full_screen(self) -> None:
        full = not self.isFullScreen()
        self.showFullScreen() if full else self.showNormal()
        self.view.bare = full
        self.transport.full_button.set_icon("window" if full else "full")
        self._settle()
        if full:
            self._pointer_timer.start(HIDE_POINTER_MS)

    def screenshot(self, path: str | None = None) -> str | None:
        """The comparison as a PNG, at twice the view's size where that is small; returns its path."""
        if self.session is None:
            return None
        path = path or _free_name(_pictures(), self.session.title, "-{}.png")
        size = self.view.size() * max(1.0, self.devicePixelRatioF())
        if self.view.picture(QSize(round(size.width()), round(size.height()))).save(path):
            self.message.say(f"Saved {path}")
            return path
        self.message.say(f"{path} cannot be written", problem=True)
        return None

    def toggle_recording(self) -> None:
        if self.recorder is not None:
            self._stop_recording()
        elif self.session is not None:
            path = _free_name(_pictures(), self.session.title, "-comparison-{}.mp4")
            self.recorder = Recorder(path, RECORD_SIZE.width(), RECORD_SIZE.height())
            self._record_start_s = time.monotonic()
            self._recorded_s = 0.0
            self.message.say(f"Recording to {path}")
        self.transport.record_button.setChecked(self.recorder is not None)

    def _record(self, now_s: float) -> None:
        recorder = self.recorder
        if recorder is None:
            return
        if recorder.error:
            self._stop_recording()
        elif now_s - self._recorded_s >= 1 / RECORD_FPS - 0.004:
            self._recorded_s = now_s
            recorder.push(array_of(self.view.picture(RECORD_SIZE)), now_s - self._record_start_s)

    def _stop_recording(self) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        recorder.close()
        self.transport.record_button.setChecked(False)
        if recorder.error:
            self.message.say(recorder.error, problem=True)
        elif recorder.frames:
            self.message.say(f"Saved {recorder.path}")

    def show_open_menu(self) -> None:
        menu = QMenu(self)
        offer(menu, "Open a file…", self.ask_open)
        offer(menu, "Open an address…", self.ask_address)
        offer(menu, "Camera", partial(self.open, "camera:0"))
        offer(menu, "Demo", partial(self.open, "demo:"))
        recent = self.recent()
        if recent:
            menu.addSeparator()
            for path in recent:
                offer(menu, Path(path).name or path, partial(self.open, path))
        menu.exec(self.open_button.mapToGlobal(self.open_button.rect().bottomLeft()))

    def ask_open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, "Open", "", "Video (*.mcode *.mp4 *.mkv *.mov *.avi *.webm *.mpg *.y4m *.ts *.sdp);;All files (*)"
        )
        if path:
            self.open(path)

    def ask_address(self) -> None:
        """A stream to listen for."""
        given = [source for source in self.recent() if source.startswith(STREAM_SCHEME)]
        text, accepted = QInputDialog.getText(self, "Open", "Listen at rtp://HOST:PORT", text=(given or [FIRST_ADDRESS])[0])
        text = text.strip()
        if accepted and text:
            self.open(text if "://" in text else f"rtp://{text}")

    # Recent files and looks

    def recent(self) -> list[str]:
        """Files that are there, and addresses; the latest first."""
        return [source for source in self._stored_recent() if "://" in source or os.path.exists(source)]

    def _stored_recent(self) -> list[str]:
        stored = self._remembered("recent", [])
        return [stored] if isinstance(stored, str) else list(stored or [])

    def _remember_recent(self, source: str) -> None:
        if self._memory is None or source.startswith(("demo:", "camera:")):
            return
        source = os.path.abspath(source) if os.path.exists(source) else source
        self._memory.setValue("recent", [source, *(p for p in self._stored_recent() if p != source)][:MOST_RECENT])

    def _remembered(self, key: str, default: object) -> Any:
        return default if self._memory is None else self._memory.value(key, default)

    # Sizes, keys, drops

    def _settle(self, asked: QWidget | None = None) -> None:
        """What fits is shown: the panel beside wide windows, the charts below tall ones."""
        full, width, height = self.isFullScreen(), self.width(), self.height()
        playing = self.session is not None
        panel = playing and self._panel_wanted and not full and (width >= PANEL_FROM or asked is self.controls)
        still = self.session is not None and self.session.still
        charts = playing and not still and self._charts_wanted and not full and (height >= CHARTS_FROM or asked is self.charts)
        panel, charts = panel and width >= PANEL_FITS, charts and width >= 480
        self.controls.setVisible(panel)
        self.panel_rule.setVisible(panel)
        self.charts.setVisible(charts)
        self.charts_rule.setVisible(charts)
        self.panel_button.setChecked(panel)
        self.charts_button.setChecked(charts)
        self.charts_button.setEnabled(not still)
        for widget in (self.header, self.header_rule, self.transport, self.transport_rule):
            widget.setVisible(not full)
        compact = width < 640
        self.title.setVisible(not compact)
        self._header_row.setStretch(2, 0 if compact else 1)
        labels = ("Side by side", "Wipe", "MCode only") if not compact else ("1", "2", "3")
        for arrangement, label in zip(Arrangement, labels, strict=True):
            self.views.button(arrangement).setText(label)
        self.theme_button.setVisible(width >= 560)
        self.charts_button.setVisible(width >= 480)
        self._settle_captions()
        self.busy.setGeometry(self.view.rect())
        self.stats.show_rows(self.stats.rows)
        self.keys.setGeometry(self.rect())

    def _settle_captions(self) -> None:
        self.view.captions = not (self.isFullScreen() and self.view.arrangement is Arrangement.SINGLE)

    def resizeEvent(self, event: QResizeEvent) -> None:
        self._settle()
        super().resizeEvent(event)

    def changeEvent(self, event: QEvent) -> None:
        if event.type() == QEvent.Type.WindowStateChange:
            self.view.bare = self.isFullScreen()
            self._settle()
        super().changeEvent(event)

    def _hide_bars(self) -> None:
        if self.isFullScreen():
            self.transport.hide()
            self.transport_rule.hide()
            self.view.setCursor(Qt.CursorShape.BlankCursor)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.MouseMove and self.isFullScreen():
            self.transport.show()
            self.view.unsetCursor()
            self._pointer_timer.start(HIDE_POINTER_MS)
        return False

    def keyPressEvent(self, event: QKeyEvent) -> None:
        key, text = Qt.Key(event.key()), event.text()
        if event.isAutoRepeat() and key not in REPEATED:
            return
        if event.modifiers() & Qt.KeyboardModifier.ControlModifier:
            if key == Qt.Key.Key_O:
                self.ask_open()
            elif key in (Qt.Key.Key_Q, Qt.Key.Key_W):
                self.close()
            return
        by_key: dict[Qt.Key, Callable[[], object]] = {
            Qt.Key.Key_Space: self.toggle_pause,
            Qt.Key.Key_Left: lambda: self.seek_by(-5),
            Qt.Key.Key_Right: lambda: self.seek_by(5),
            Qt.Key.Key_Down: lambda: self.seek_by(-60),
            Qt.Key.Key_Up: lambda: self.seek_by(60),
            Qt.Key.Key_Home: lambda: self.seek(0.0),
            Qt.Key.Key_Backspace: lambda: self.set_speed(1.0),
            Qt.Key.Key_F11: self.toggle_full_screen,
            Qt.Key.Key_Escape: self._escape,
        }
        by_text: dict[str, Callable[[], object]] = {
            "p": self.toggle_pause,
            ".": lambda: self.step(1),
            ",": lambda: self.step(-1),
            "[": lambda: self.change_speed(-1),
            "]": lambda: self.change_speed(1),
            "l": self.toggle_loop,
            "m": self.toggle_mute,
            "1": lambda: self.arrange(Arrangement.SIDE_BY_SIDE),
            "2": lambda: self.arrange(Arrangement.WIPE),
            "3": lambda: self.arrange(Arrangement.SINGLE),
            "4": self.toggle_original,
            "f": self.toggle_full_screen,
            "i": self.toggle_stats,
            "c": self.toggle_panel,
            "g": self.toggle_charts,
            "t": self.toggle_theme,
            "o": self.ask_open,
            "u": self.ask_address,
            "s": self.screenshot,
            "r": self.toggle_recording,
            "?": self.toggle_keys,
            "q": self.close,
        }
        action = by_key.get(key) or by_text.get(text.lower())
        if action is not None:
            action()
        else:
            super().keyPressEvent(event)

    def _escape(self) -> None:
        if self.keys.isVisible():
            self.keys.hide()
        elif self.isFullScreen():
            self.toggle_full_screen()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        data = event.mimeData()
        if data is not None and data.hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        data = event.mimeData()
        urls = data.urls() if data is not None else []
        if urls:
            self.open(urls[0].toLocalFile() or urls[0].toString())

    def closeEvent(self, event: QCloseEvent) -> None:
        self._timer.stop()
        _application().removeEventFilter(self)
        for opening in self._opening:
            opening.done.disconnect()
            opening.wait()
        self._end_session()
        super().closeEvent(event)


def _application() -> QApplication:
    app = QApplication.instance()
    assert isinstance(app, QApplication)
    return app


def _pictures() -> Path:
    """Where screenshots and recordings go."""
    from PyQt6.QtCore import QStandardPaths

    folder = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.PicturesLocation)
    if os.path.isdir(folder):
        return Path(folder)
    try:
        return Path.cwd()
    except OSError:  # it has been removed
        return Path.home()


def _free_name(folder: Path, title: str, ending: str) -> str:
    """A path for what is made of a source of that title. ending: with {} for a number."""
    stem = Path(title).stem.encode("utf-8", "ignore")[:MOST_STEM_BYTES].decode("utf-8", "ignore") or "mcode"
    paths = (os.path.join(folder, stem + ending.format(i)) for i in itertools.count(1))
    return next(path for path in paths if not os.path.exists(path))
