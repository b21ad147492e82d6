"""`mcode-player` and `mcode play`: the command line of the window."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from mcode.errors import McodeError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="mcode-player",
        description="Play an .mcode file or a stream; encode a video or a camera live, MCode beside H.264.",
    )
    made.add_argument("source", nargs="?", help="FILE.mcode, any video, camera:0, STREAM.sdp or rtp://HOST:PORT")
    made.add_argument("--demo", action="store_true", help="show the built-in comparison; needs no camera and no network")
    made.add_argument("--manifold", metavar="NAME|PATH", help="manifold to encode with (default: general)")
    made.add_argument("--n", type=int, default=4, metavar="N", help="every N-th frame is a keyframe (default: 4)")
    made.add_argument("--coder", choices=("huffman", "fixed", "range"), default="huffman")
    made.add_argument("--bit-error-rate", type=float, default=0.0, metavar="RATE", help="as 1e-3")
    made.add_argument("--loss", type=float, default=0.0, metavar="SHARE", help="of packets, as 0.05")
    made.add_argument("--seed", type=int, default=0, help="of the channel's damage (default: 0)")
    made.add_argument("--device", default="auto", help="cpu, cuda or auto")
    made.add_argument("--no-sound", action="store_true", help="do not open the sound card")
    made.add_argument("--fullscreen", action="store_true")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the window until it is closed; 0, or 2 where the arguments are wrong."""
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except McodeError as error:
        print(f"mcode-player: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from functools import partial

    from .session import N_MOST, Settings
    from .sources import check_source, open_source

    settings = Settings(
        n=arguments.n,
        coder=arguments.coder,
        manifold=arguments.manifold,
        bit_error_rate=arguments.bit_error_rate,
        loss=arguments.loss,
        seed=arguments.seed,
    )
    from mcode.errors import InputError

    from .link import channel_settings

    channel_settings(settings)  # raises InputError in one line for what is out of range
    if not 1 <= settings.n <= N_MOST:
        raise InputError(f"--n {settings.n}: the keyframe interval is 1 to {N_MOST} frames in the player")
    source = "demo:" if arguments.demo else arguments.source
    if source:
        check_source(source)
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.environ.get("QT_QPA_PLATFORM")
    ):
        raise InputError("no display to open a window on; `mcode decode` writes a video instead")

    from PyQt6.QtCore import QTimer
    from PyQt6.QtWidgets import QApplication

    from .window import Window

    application = QApplication.instance() or QApplication(["mcode-player"])
    assert isinstance(application, QApplication)
    application.setApplicationName("MCode")
    application.setStyle("Fusion")
    window = Window(opener=partial(open_source, device=arguments.device), sound=not arguments.no_sound)
    window.start_with(settings)
    window.showFullScreen() if arguments.fullscreen else window.show()
    if source:
        window.open(source)
    signal.signal(signal.SIGINT, lambda *_: window.close())
    wake = QTimer()  # lets Python see Ctrl-C while Qt waits
    wake.timeout.connect(lambda: None)
    wake.start(300)
    return application.exec()


if __name__ == "__main__":
    sys.exit(main())
