"""`mcode-player`, and the window of `mcode play`, whose options and checks it shares. Imports no Qt before they are done."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from mcode.errors import InputError

if TYPE_CHECKING:
    from PyQt6.QtCore import QMessageLogContext, QtMsgType


def main(argv: Sequence[str] | None = None) -> int:
    """`mcode play` with these arguments (sys.argv's when None); returns its exit status."""
    from mcode import cli

    return cli.main(["play", *(sys.argv[1:] if argv is None else argv)])


def run(
    source: str | None,
    *,
    demo: bool = False,
    manifold: str | None = None,
    n: int = 4,
    adaptive: bool = False,
    rate_kbps: float | None = None,
    quality: int | None = None,
    coder: str = "huffman",
    bit_error_rate: float = 0.0,
    loss: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    sound: bool = True,
    full_screen: bool = False,
) -> int:
    """The window, until it is closed; returns Qt's status, or 2 where what was opened last cannot be played, which is said in
    one line on stderr, too. Raises McodeError for what can be told before it opens."""
    from mcode.manifold import read_info

    from .session import Settings
    from .sources import default_manifold, open_source, probe_source

    settings = Settings(
        n=n,
        adaptive=adaptive,
        rate_kbps=rate_kbps,
        coder=coder,
        manifold=manifold,
        quality=quality,
        bit_error_rate=bit_error_rate,
        loss=loss,
        seed=seed,
    )
    if demo and source is not None:
        raise InputError(f"--demo and {source}: give one of them")
    source = "demo:" if demo else source
    if source is not None:
        probe_source(source)
    encoding = manifold or (default_manifold() if quality is not None and not demo else None)
    if encoding is not None:
        info = read_info(encoding)
        if quality is not None and quality > info.qualities:
            raise InputError(f"--quality {quality}: manifold {info.name} has qualities 1 to {info.qualities}")
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.environ.get("QT_QPA_PLATFORM")
    ):
        raise InputError("no display to open a window on; `mcode decode` writes a video instead")
    from PyQt6.QtCore import QTimer, qInstallMessageHandler
    from PyQt6.QtWidgets import QApplication

    from .window import Window

    qInstallMessageHandler(_hear_qt)
    application = QApplication.instance() or QApplication(["mcode"])
    assert isinstance(application, QApplication)
    application.setApplicationName("MCode")
    application.setStyle("Fusion")
    window = Window(opener=partial(open_source, device=device), sound=sound)
    window.start_with(settings)
    problem: str | None = None

    def note(new: str | None) -> None:
        nonlocal problem
        problem = new
        if new:
            print(f"mcode: error: {new}", file=sys.stderr)

    window.opened.connect(lambda _: note(None))
    window.failed.connect(note)
    window.showFullScreen() if full_screen else window.show()
    if source is not None:
        window.open(source)
    signal.signal(signal.SIGINT, lambda *_: QTimer.singleShot(0, window.close))  # not amid whatever it interrupts
    wake = QTimer()  # lets Python see Ctrl-C while Qt waits
    wake.timeout.connect(lambda: None)
    wake.start(300)
    try:
        status = application.exec() or 2 * bool(problem)
    finally:
        qInstallMessageHandler(None)  # Qt may speak after Python has ended
    if window.lost_sound:
        _end_now(status)
    return status


def _end_now(status: int) -> None:
    """Ends the process without Qt's destructors, which wait for a sound card."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it
            stream.flush()
    os._exit(status)


def _hear_qt(kind: QtMsgType, context: QMessageLogContext, message: str | None) -> None:
    """Qt's messages, but those that tell whoever plays a video nothing."""
    from PyQt6.QtCore import qFormatLogMessage

    from .audio import SERVER_LOST, note_lost_server

    text = message or ""
    if SERVER_LOST in text:
        note_lost_server()
    elif "QBackingStore::flush()" not in text:
        print(qFormatLogMessage(kind, context, text), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
