"""Frames a second in the player's window: how many are shown, how many are dropped. Offscreen, the real window and session.

python scripts/measure_player.py [--seconds 15] [--only general] [-o player.json]

Two clips, rendered here, encoded live beside H.264 as in the window: talking-head at 128x128 and 60 frames/s, general at
640x360 and 25 frames/s. A frame counts when a tick of the window made it the newest of its lane and the picture area was
painted with it. The pace is what the clip asks for; less shown than that is lateness of this machine. Beside them: how many
cores the window's process and the networks' process used, how many all others, and what both held in memory at the start
and after each tenth of the time (with --seconds 600: whether it grows).
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from PyQt6.QtWidgets import QApplication  # noqa: E402
from soak import machine, write_or_print  # noqa: E402

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
SAMPLES = 10


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


@dataclass(frozen=True)
class Usage:
    """Seconds of processor time so far, and resident memory: of the window's process, the networks', and time of all."""

    window_s: float
    networks_s: float
    all_s: float
    window_mb: float
    networks_mb: float

    @classmethod
    def now(cls, networks: int | None) -> Usage:
        """networks: their process. Linux only: elsewhere all is 0."""
        ours, theirs = _process(os.getpid()), _process(networks)
        lines = Path("/proc/stat").read_text().splitlines() if Path("/proc/stat").exists() else ["cpu 0"]
        busy = [int(field) for i, field in enumerate(lines[0].split()[1:9]) if i not in (3, 4)]  # not idle, not waiting
        return cls(ours[0], theirs[0], sum(busy) / _TICKS_PER_S, ours[1], theirs[1])


_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _process(pid: int | None) -> tuple[float, float]:
    """(seconds of processor time, MB resident)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, int(fields[21]) * os.sysconf("SC_PAGESIZE") / 1e6


def run(app: QApplication, seconds: float, until: Any = lambda: False) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        app.processEvents()
        if until():
            return True
        time.sleep(0.003)
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
            sys.exit(f"error: {case['manifold']} did not start playing: {window.message.text or 'nothing came'}")
        session = window.session
        run(app, WARM_UP_S)
        dropped = {lane.name: lane.counters.dropped for lane in session.lanes}
        painted.count.clear()
        start_s, before = time.monotonic(), Usage.now(session.networks.pid)
        usages = [before]
        for _ in range(SAMPLES):
            run(app, seconds / SAMPLES)
            usages.append(Usage.now(session.networks.pid))
        length_s, after = time.monotonic() - start_s, usages[-1]
        window_s, networks_s = after.window_s - before.window_s, after.networks_s - before.networks_s
        return {
            "manifold": case["manifold"],
            "size": "x".join(map(str, session.coded or case["size"])),
            "clip_fps": case["fps"],
            "n": n,
            "shown_per_s": {name: round(count / length_s, 2) for name, count in sorted(painted.count.items())},
            "dropped": {lane.name: lane.counters.dropped - dropped[lane.name] for lane in session.lanes},
            "delay_ms": round(1000 * session.latency_s),
            "cores": {
                "window": round(window_s / length_s, 2),
                "networks": round(networks_s / length_s, 2),
                "others": round((after.all_s - before.all_s - window_s - networks_s) / length_s, 2),
            },
            "memory_mb": {
                "window": [round(usage.window_mb) for usage in usages],
                "networks": [round(usage.networks_mb) for usage in usages],
            },
            "load": round(os.getloadavg()[0], 2),
            "notices": list(session.notices),
            "seconds": round(length_s, 1),
        }
    finally:
        window.close()
        app.processEvents()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--only", choices=[case["manifold"] for case in CASES], help="this manifold alone")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("-o", "--output", type=Path, help="a file for the result; printed if left out")
    given = parser.parse_args()
    app = QApplication([])
    app.setStyle("Fusion")
    about = {
        "command": f"python scripts/measure_player.py --seconds {given.seconds:g} --n {given.n}"
        + (f" --only {given.only}" if given.only else ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "note": given.note,
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in [case for case in CASES if given.only in (None, case["manifold"])]:
            clip = Path(folder) / f"{case['scene']}.mp4"
            write_clip(clip, scene=case["scene"], seconds=CLIP_S, size=case["size"], fps=case["fps"], seed=1)
            rows.append(measure(app, case, clip, given.seconds, given.n))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    write_or_print(given.output, {**about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
