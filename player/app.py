"""`mcode-player`, and the window of `mcode play`, whose options and checks it shares. Imports no Qt before they are done."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial

from mcode.errors import InputError


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
    coder: str = "huffman",
    bit_error_rate: float = 0.0,
    loss: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    sound: bool = True,
    full_screen: bool = False,
) -> int:
    """The window, until it is closed; returns Qt's status. Raises McodeError for what can be told before it opens."""
    from mcode.manifold import read_info

    from .session import Settings
    from .sources import check_source, open_source

    settings = Settings(n=n, coder=coder, manifold=manifold, bit_error_rate=bit_error_rate, loss=loss, seed=seed)
    source = "demo:" if demo else source
    if source:
        check_source(source)
    if manifold is not None:
        read_info(manifold)
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.environ.get("QT_QPA_PLATFORM")
    ):
        raise InputError("no display to open a window on; `mcode decode` writes a video instead")
    from PyQt6.QtCore import QTimer
    from PyQt6.QtWidgets import QApplication

    from .window import Window

    application = QApplication.instance() or QApplication(["mcode"])
    assert isinstance(application, QApplication)
    application.setApplicationName("MCode")
    application.setStyle("Fusion")
    window = Window(opener=partial(open_source, device=device), sound=sound)
    window.start_with(settings)
    window.showFullScreen() if full_screen else window.show()
    if source:
        window.open(source)
    signal.signal(signal.SIGINT, lambda *_: window.close())
    wake = QTimer()  # lets Python see Ctrl-C while Qt waits
    wake.timeout.connect(lambda: None)
    wake.start(300)
    return application.exec()


if __name__ == "__main__":
    sys.exit(main())
