"""Makes pictures of the player: the real window on the demo, offscreen.

    python scripts/screenshots.py FOLDER

Without a folder those that the README shows are made, in docs/images. Takes a minute.
The fonts are those of this machine: install Inter (fonts-inter) for the looks in the README.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PyQt6.QtWidgets import QApplication  # noqa: E402

from player.demo import prepare  # noqa: E402
from player.session import Settings  # noqa: E402
from player.view import Arrangement  # noqa: E402
from player.window import Window  # noqa: E402

PATIENCE_S = 120.0


def run(app: QApplication, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        app.processEvents()
        if until():
            return True
        time.sleep(0.004)
    return False


README = ("player.png", "player-light.png", "player-wipe.png", "player-noise.png")


def main(folder: Path, only: Sequence[str] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    app = QApplication([])
    app.setStyle("Fusion")
    window = Window(remember=False, sound=False)
    window.resize(1280, 760)
    window.show()

    def save(name: str) -> None:
        if only is not None and name not in only:
            return
        app.processEvents()
        window.grab().save(str(folder / name))
        print(folder / name)

    def play(source: str, settings: Settings) -> None:
        window.start_with(settings)
        window.open(source)
        if not run(app, PATIENCE_S, lambda: window.session is not None and window.session.busy is None):
            sys.exit(f"{source} did not start: {window.message.text or 'nothing came'}")

    run(app, 0.3)
    save("player-welcome.png")
    play("demo:", Settings())
    run(app, 18)
    save("player.png")
    window.toggle_theme()
    run(app, 0.5)
    save("player-light.png")
    window.toggle_theme()
    window.arrange(Arrangement.WIPE)
    run(app, 0.5)
    save("player-wipe.png")
    window.arrange(Arrangement.SIDE_BY_SIDE)
    play("demo:", Settings(coder="fixed"))
    run(app, 10)
    window.toggle_original()
    window.controls.change(bit_error_rate=1e-2, loss=0.05)
    run(app, 12)
    save("player-noise.png")
    window.toggle_original()
    window.resize(480, 320)
    run(app, 1)
    save("player-small.png")
    window.resize(1280, 760)
    window.toggle_keys()
    run(app, 0.3)
    save("player-keys.png")
    window.toggle_keys()

    from mcode.manifold import load
    from mcode.transcode import encode_file

    demo = prepare()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "talking-head.mcode"
        os.environ["MCODE_MANIFOLDS"] = str(demo.manifold.parent)
        encode_file(demo.clip, path, manifold=load(demo.manifold), refresh_s=1.0)
        play(str(path), Settings())
        run(app, 5)
        window.toggle_pause()
        window.toggle_stats()
        run(app, 0.5)
        save("player-file.png")
        window.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where all the pictures go")
    wanted = parser.parse_args().folder
    main(wanted or ROOT / "docs" / "images", None if wanted else README)
