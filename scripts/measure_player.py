"""Frames a second in the player's window: how many are shown, how many are dropped. Offscreen, the real window and session.

python scripts/measure_player.py [--seconds 15] [-o docs/results/player.json]

Two clips, rendered here, encoded live beside H.264 as in the window: talking-head at 128x128 and 60 frames/s, general at
640x360 and 25 frames/s. A frame counts when a tick of the window made it the newest of its lane and the picture area was
painted with it. The pace is what the clip asks for; less shown than that is lateness of this machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from PyQt6.QtWidgets import QApplication  # noqa: E402
from soak import machine  # noqa: E402

from mcode.testclip import write_clip  # noqa: E402
from player.session import Settings  # noqa: E402
from player.window import Window  # noqa: E402

CASES = (
    {"manifold": "talking-head", "scene": "face", "size": (128, 128), "fps": 60},
    {"manifold": "general", "scene": "arms", "size": (640, 360), "fps": 25},
)
CLIP_S = 8.0
WARM_UP_S = 5.0
PATIENCE_S = 120.0


class Painted:
    """Counts the pictures of each lane that were painted."""

    def __init__(self, window: Window) -> None:
        self.window, self.count = window, Counter()
        self._seen: dict[str, int] = {}
        self._paint = window.view.paintEvent
        window.view.paintEvent = self._note  # type: ignore[method-assign]

    def _note(self, event: Any) -> None:
        self._paint(event)
        for lane in self.window.view.visible_lanes():
            if lane.serial != self._seen.get(lane.name):
                self._seen[lane.name] = lane.serial
                self.count[lane.name] += 1


def run(app: QApplication, seconds: float, until: Any = lambda: False) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        app.processEvents()
        if until():
            return True
        time.sleep(0.001)
    return False


def measure(app: QApplication, case: dict[str, Any], clip: Path, seconds: float, n: int) -> dict[str, Any]:
    window = Window(remember=False, sound=False)
    window.resize(1280, 760)
    window.show()
    window.start_with(Settings(n=n, manifold=case["manifold"]))
    window.open(os.fspath(clip))
    painted = Painted(window)
    try:
        ready = run(app, PATIENCE_S, lambda: window.session is not None and window.session.lanes[0].newest is not None)
        if not ready or window.session is None:
            sys.exit(f"error: {case['manifold']} did not start playing")
        session = window.session
        run(app, WARM_UP_S)
        dropped = {lane.name: lane.counters.dropped for lane in session.lanes}
        painted.count.clear()
        start_s, load = time.monotonic(), os.getloadavg()[0]
        run(app, seconds)
        length_s = time.monotonic() - start_s
        return {
            "manifold": case["manifold"],
            "size": "x".join(map(str, session.coded or case["size"])),
            "clip_fps": case["fps"],
            "n": n,
            "shown_per_s": {name: round(count / length_s, 2) for name, count in sorted(painted.count.items())},
            "dropped": {lane.name: lane.counters.dropped - dropped[lane.name] for lane in session.lanes},
            "delay_ms": round(1000 * session.latency_s),
            "load": round(load, 2),
            "seconds": round(length_s, 1),
        }
    finally:
        window.close()
        app.processEvents()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "results" / "player.json")
    given = parser.parse_args()
    app = QApplication([])
    app.setStyle("Fusion")
    about = {
        "command": f"python scripts/measure_player.py --seconds {given.seconds:g} --n {given.n}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "note": given.note,
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            clip = Path(folder) / f"{case['scene']}.mp4"
            write_clip(clip, scene=case["scene"], seconds=CLIP_S, size=case["size"], fps=case["fps"], seed=1)
            rows.append(measure(app, case, clip, given.seconds, given.n))
            print(json.dumps(rows[-1]), flush=True)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    partial = given.output.with_suffix(".part")
    partial.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    partial.replace(given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
