"""The delay from camera to screen on the loopback, by a clock burnt into the picture; sender and receiver are two processes.

python scripts/measure_delay.py [--seconds 20] [--n 4] [--manifold NAME --size 320x180] [-o delay.json]

The sender's source is a camera that paints the time of day in milliseconds as 16 black and white blocks (Gray code) into
each frame, at 25 frames/s. The receiver notes when a picture first stands on the screen (polled every millisecond), and
reads the clock in it. Pictures between two keyframes mix two clocks and are not read; their capture time follows from
their RTP timestamp, which the clocks that were read pin to the time of day.

Without --manifold a linear one is learned first from such pictures, 128x128: the clock must survive the coding, which the
shipped talking-head knows nothing of. `general` carries it too, and costs what its networks cost.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from soak import machine, write_or_print  # noqa: E402

from mcode.frame import TICKS_PER_S, Frame  # noqa: E402
from mcode.receive import Receiver  # noqa: E402
from mcode.send import SendConfig, Sender, Source, read_stamp, test_picture  # noqa: E402
from mcode.training.adapt import adapt_linear  # noqa: E402
from mcode.video import FrameWriter  # noqa: E402

FPS = 25
WRAP_MS = 1 << 16
WARM_UP_S = 4.0
TARGET_MS = 60.0
"""Beyond the wait for N frames, at the 95th percentile."""


class ClockCamera(Source):
    """A camera whose pictures tell the time at which they were taken: milliseconds of the day, modulo 65536."""

    is_paced = False

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.display, self.fps = width, height, (width, height), float(FPS)

    def __iter__(self) -> Iterator[Frame]:
        start_s = time.monotonic()
        index = 0
        while not self.stop.is_set():
            due_s = start_s + index / FPS
            if self.stop.wait(max(0.0, due_s - time.monotonic())):
                return
            now_s = time.monotonic()
            clock_ms = round(time.time() * 1000) % WRAP_MS
            rgb = test_picture(index, self.width, self.height, stamp=clock_ms)
            yield Frame(rgb, round((now_s - start_s) * TICKS_PER_S))
            index = max(index + 1, int((time.monotonic() - start_s) * FPS))  # as a camera that drops what nobody takes


def learn(folder: Path, size: tuple[int, int]) -> str:
    """A linear manifold of test pictures with any clock on them."""
    rng, clip, made = random.Random(0), folder / "clocks.mkv", folder / "clocks.safetensors"
    with FrameWriter(clip, width=size[0], height=size[1]) as writer:
        for index in range(400):
            rgb = test_picture(index, *size, stamp=rng.randrange(WRAP_MS))
            writer.push(Frame(rgb, index * TICKS_PER_S // FPS))
    adapt_linear([clip], made, m=64, size=size)
    return os.fspath(made)


def send(given: argparse.Namespace) -> None:
    config = SendConfig(
        "testsrc",
        to=f"rtp://127.0.0.1:{given.port}",
        n=given.n,
        manifold=given.manifold,
        coder=given.coder,
        baseline="none" if given.no_baseline else "h264",
        size=given.size,
    )
    with Sender(config) as sender:
        sender.source = ClockCamera(sender.source.width, sender.source.height)
        sender.start()
        while sender.is_running and os.getppid() != 1:
            time.sleep(0.1)


def watch(receiver: Receiver, lane: str, seconds: float) -> list[tuple[float, int, int | None]]:
    """(time of day in s, RTP timestamp, clock in the picture or None) of each picture that came onto the screen."""
    view, seen, shown = receiver.lanes[lane], [], 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        newest = view.newest
        if newest is not None and newest[2] != shown:
            at_s, shown = time.time(), newest[2]
            seen.append((at_s, newest[0].pts, read_stamp(newest[0].rgb)))
        time.sleep(0.001)
    return seen


def delays(seen: list[tuple[float, int, int | None]]) -> tuple[list[float], list[float]]:
    """ms from capture to screen: (of the pictures whose clock was read, of all pictures)."""
    ticks_per_ms = TICKS_PER_S // 1000
    offsets = [(stamp - pts / ticks_per_ms) % WRAP_MS for _, pts, stamp in seen if stamp is not None]
    if len(offsets) < 5:
        sys.exit("error: hardly a clock could be read in the pictures; give a larger --size or another --manifold")
    # the clock runs with the timestamps: those that do not fit were mixed of two pictures
    about = statistics.median(offsets)
    fitting = [offset for offset in offsets if abs(_signed(offset - about)) < 8]
    offset = about + statistics.median(_signed(o - about) for o in fitting)
    read, every = [], []
    for at_s, pts, stamp in seen:
        captured_ms = (pts / ticks_per_ms + offset) % WRAP_MS
        every.append((at_s * 1000 - captured_ms) % WRAP_MS)
        if stamp is not None and abs(_signed(stamp - captured_ms)) < 8:
            read.append((at_s * 1000 - stamp) % WRAP_MS)
    return read, every


def _signed(ms: float) -> float:
    return (ms + WRAP_MS / 2) % WRAP_MS - WRAP_MS / 2


def figures(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)

    def at(share: float) -> float:
        return round(ranked[int(share * (len(ranked) - 1))], 1)

    return {"pictures": len(ranked), "p5_ms": at(0.05), "median_ms": at(0.5), "p95_ms": at(0.95), "most_ms": at(1.0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--manifold")
    parser.add_argument("--coder", default="huffman")
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=(128, 128), metavar="WxH")
    parser.add_argument("--port", type=int, default=5604)
    parser.add_argument("--no-baseline", action="store_true", help="send MCode alone")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--send", action="store_true", help=argparse.SUPPRESS)  # this is the sender's process
    parser.add_argument("-o", "--output", type=Path, help="a file for the result; printed if left out")
    given = parser.parse_args()
    if given.send:
        send(given)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        learned = given.manifold is None
        given.manifold = given.manifold or learn(Path(folder), given.size)
        result = measure(given, learned)
    write_or_print(given.output, result)
    return 0


def measure(given: argparse.Namespace, learned: bool) -> dict[str, Any]:
    about = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": machine()}
    lanes = ("mcode",) if given.no_baseline else ("mcode", "baseline")
    options = ["--manifold", given.manifold, "--send"]
    with Receiver(f"rtp://127.0.0.1:{given.port}", manifold=given.manifold, lanes=lanes) as receiver:
        sender = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], *options])
        try:
            end_s = time.monotonic() + 120
            while receiver.lanes["mcode"].shown < FPS:
                if sender.poll() is not None or time.monotonic() > end_s:
                    sys.exit("error: no picture came from the sender")
                time.sleep(0.05)
            time.sleep(WARM_UP_S)
            seen = watch(receiver, "mcode", given.seconds)
            parts = receiver.lanes["mcode"].delay
            counters = receiver.lanes["mcode"].counters()
        finally:
            sender.terminate()
            sender.wait(20)
    read, every = delays(seen)
    target = given.n * 1000 / FPS + TARGET_MS
    size = "x".join(map(str, given.size))
    named = "" if learned else f" --manifold {Path(given.manifold).name}"
    return {
        "command": f"python scripts/measure_delay.py --seconds {given.seconds:g} --n {given.n}{named} --size {size}"
        + (" --no-baseline" if given.no_baseline else ""),
        "manifold": "linear, 64 coordinates, learned from such pictures" if learned else Path(given.manifold).name,
        **about,
        "load_at_end": round(os.getloadavg()[0], 2),
        "note": given.note,
        "n": given.n,
        "fps": FPS,
        "clock_read": figures(read),
        "all_pictures": figures(every),
        "target_p95_ms": target,
        "passed": figures(every)["p95_ms"] <= target,
        "frames_shown_per_s": round(len(seen) / given.seconds, 2),
        "skipped": counters.skipped,
        "last": {name: round(value, 1) for name, value in parts._asdict().items()},
    }


if __name__ == "__main__":
    sys.exit(main())
