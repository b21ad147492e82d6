"""What the commands of optional extras need: a way to say which extra is missing, and an orderly end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mcode.errors import InputError

EXTRAS = {"PyQt6": "player", "pyqtgraph": "player", "reedsolo": "live", "ray": "cluster"}
"""Packages that MCode installed without extras leaves out, and the smallest extra that brings each; `player` brings all."""


@contextmanager
def extras(wanted: str | None = None) -> Iterator[None]:
    """What an extra would bring and is not there becomes one line that says how to get it. wanted: the extra that brings all
    which the command needs; None: the smallest one that brings what is missing."""
    try:
        yield
    except ImportError as missing:
        name = (missing.name or "").partition(".")[0]
        if name not in EXTRAS:
            raise
        if isinstance(missing, ModuleNotFoundError):
            raise InputError(f'{name} is not installed: pip install "mcode[{wanted or EXTRAS[name]}]"') from missing
        raise InputError(f"{name} does not load on this machine: {missing}") from missing


@contextmanager
def signals_end() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, so that a stream ends in order; the second one interrupts. So does a
    terminal that is closed (SIGHUP, which may come twice), where that is not ignored."""
    stop = threading.Event()

    def end(signum: int, frame: Any) -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, previous[number])

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    previous = {number: signal.signal(number, end) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_display(remedy: str, *, missing: bool = False) -> None:
    """Refuse a display that is named and does not answer: Qt would abort over it, so another process tries it first.

    remedy: the end of the message. missing: refuse none at all, too.
    """
    named = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if os.environ.get("QT_QPA_PLATFORM") or not (named or missing):
        return
    import subprocess

    trial = "from PyQt6.QtGui import QGuiApplication; QGuiApplication([])"
    tried = subprocess.run([sys.executable, "-c", trial], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if tried.returncode < 0:
        reason = tried.stderr.strip().partition("\n")[0].removeprefix("qt.qpa.plugin: ").removeprefix("qt.qpa.xcb: ")
        raise InputError(f"no window can be opened on this display ({reason}); {remedy}")
