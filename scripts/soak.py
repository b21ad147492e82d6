"""A long live stream on the loopback, sender and receiver in one process: does it stay up, in step and small?

python scripts/soak.py CLIP [--seconds 3600] [--manifold talking-head] [-o soak.json]

CLIP is sent over and over with its sound and an H.264 lane beside it, through 5 % loss and bit errors of 1e-3. Every ten
seconds: memory, counters, frames shown, and by how much the picture on the screen is ahead of the sound being heard. That
offset is taken from the RTP timestamps of the frame and of the sound against where the sender began both, so whatever the
receiver's clocks believe does not enter it. Status 1 where something crashed, grew or drifted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mcode.channel import ChannelSettings  # noqa: E402
from mcode.errors import McodeError  # noqa: E402
from mcode.receive import Receiver  # noqa: E402
from mcode.rtp import opus, payload  # noqa: E402
from mcode.send import SendConfig, Sender  # noqa: E402
from mcode.whole import write_whole  # noqa: E402

MOST_GROWTH_MB, MOST_DRIFT_MS = 50.0, 40.0
POLL_S = 0.004


@dataclass(frozen=True)
class Sample:
    """shown: frames that reached the screen in this interval, by lane. ahead_ms: of the picture before the sound, the
    median of the interval, and the 95th percentile of its size; None where there is no sound."""

    at_s: float
    memory_mb: float
    threads: int
    load: float
    sent_frames: int
    shown: dict[str, int]
    ahead_ms: float | None
    ahead_p95_ms: float | None


@dataclass(frozen=True)
class Soak:
    """growth_mb: the most memory after the warm-up, less what there was at its end. drift_ms: the largest median of an
    interval after the warm-up. problems: what failed, in words; none is a pass."""

    seconds: float
    warm_up_s: float
    growth_mb: float
    drift_ms: float | None
    sender: dict[str, Any]
    receiver: dict[str, Any]
    samples: list[Sample]
    problems: list[str]


def soak(
    config: SendConfig,
    seconds: float,
    *,
    sample_s: float = 10.0,
    warm_up_s: float | None = None,
    model: Any = None,
    progress: Callable[[list[Sample]], None] | None = None,
) -> Soak:
    """Send config to this process for so long. warm_up_s: a minute, or a third of a shorter run, if left out."""
    warm_up_s = min(60.0, seconds / 3) if warm_up_s is None else warm_up_s
    samples: list[Sample] = []
    problems: list[str] = []
    with Receiver(config.to, manifold=model) as receiver, Sender(config, model=model) as sender:
        sender.start()
        screen = _Screen(sender, receiver)
        start_s = time.monotonic()
        due_s = sample_s
        while (now_s := time.monotonic() - start_s) < seconds:
            screen.look()
            if now_s >= due_s:
                due_s += sample_s
                samples.append(_sample(now_s, sender, screen))
                if progress is not None:
                    progress(samples)
            if not sender.is_running:
                problems.append(f"the sender ended after {now_s:.0f} s: {sender.error}")
                break
            time.sleep(POLL_S)
        else:
            samples.append(_sample(seconds, sender, screen))
        if receiver.error is not None:
            problems.append(f"the receiver: {receiver.error}")
        counters = {name: asdict(view.counters()) for name, view in receiver.lanes.items()}
        sound = receiver.audio_counters()
        status = asdict(sender.status())
    warm = [sample for sample in samples if sample.at_s > warm_up_s]
    before = [sample for sample in samples if sample.at_s <= warm_up_s]
    growth = max(s.memory_mb for s in warm) - (before or warm)[-1 if before else 0].memory_mb if warm else 0.0
    drifts = [sample.ahead_ms for sample in warm if sample.ahead_ms is not None]
    drift = max(drifts, key=abs) if drifts else None
    if growth > MOST_GROWTH_MB:
        problems.append(f"memory grew by {growth:.0f} MB")
    if drift is not None and abs(drift) > MOST_DRIFT_MS:
        problems.append(f"picture and sound were {abs(drift):.0f} ms apart")
    problems += [f"{lane} stood still" for lane in receiver.lanes if any(s.shown[lane] == 0 for s in warm)]
    received = {**counters, "sound": asdict(sound) if sound else None}
    return Soak(seconds, warm_up_s, growth, drift, status, received, samples, problems)


class _Screen:
    """Looks at the newest picture and at the sound due, as a window and a sound card would."""

    def __init__(self, sender: Sender, receiver: Receiver) -> None:
        self.sender, self.receiver = sender, receiver
        self.shown = dict.fromkeys(receiver.lanes, 0)
        self.ahead_ms: list[float] = []
        self._serials = dict.fromkeys(receiver.lanes, 0)
        self._heard: tuple[float, int] | None = None  # when a piece of sound was due, its RTP timestamp

    def look(self) -> None:
        now_s = time.monotonic()
        while self.receiver.audio and (due_s := self.receiver.audio[0].due_s) <= now_s:
            self._heard = due_s, self.receiver.audio.popleft().pts
        for name, view in self.receiver.lanes.items():
            newest = view.newest
            if newest is None or newest[2] == self._serials[name]:
                continue
            self.shown[name] += newest[2] - self._serials[name]
            self._serials[name] = newest[2]
            if name == "mcode" and (heard_s := self._heard_s(now_s)) is not None:
                seen_s = self._media_s(newest[0].pts, self.sender.mcode, payload.CLOCK_HZ)
                self.ahead_ms.append((seen_s - heard_s) * 1000)

    def _heard_s(self, now_s: float) -> float | None:
        if self._heard is None or now_s - self._heard[0] > 0.1 or self.sender.audio is None:
            return None  # nothing, or a gap
        due_s, pts = self._heard
        return self._media_s(pts, self.sender.audio, opus.CLOCK_HZ) + now_s - due_s

    @staticmethod
    def _media_s(pts: int, lane: Any, clock_hz: int) -> float:
        return ((pts - lane.first_timestamp) & 0xFFFFFFFF) / clock_hz


def _sample(now_s: float, sender: Sender, screen: _Screen) -> Sample:
    ahead, screen.ahead_ms = screen.ahead_ms, []
    shown, screen.shown = screen.shown, dict.fromkeys(screen.shown, 0)
    return Sample(
        at_s=round(now_s, 1),
        memory_mb=round(memory_mb(), 1),
        threads=threading.active_count(),
        load=round(os.getloadavg()[0], 2),
        sent_frames=sender.status().frames,
        shown=shown,
        ahead_ms=round(statistics.median(ahead), 1) if ahead else None,
        ahead_p95_ms=round(sorted(map(abs, ahead))[int(0.95 * (len(ahead) - 1))], 1) if ahead else None,
    )


def memory_mb() -> float:
    """This process's resident memory."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def machine() -> dict[str, Any]:
    """What it ran on, for the record."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def write_or_print(output: Path | None, result: dict[str, Any]) -> None:
    """As JSON, into the file, or to standard output where it is None."""
    text = json.dumps(result, indent=1) + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, text)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", help="a video with sound, or testsrc")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--manifold", default="talking-head")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--coder", default="huffman")
    parser.add_argument("--loss", type=float, default=0.05)
    parser.add_argument("--bit-error-rate", type=float, default=1e-3)
    parser.add_argument("--port", type=int, default=5504)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("-o", "--output", type=Path, help="a file for the result; printed if left out")
    given = parser.parse_args()
    try:
        return measure(given)
    except McodeError as error:
        parser.error(str(error))


def measure(given: argparse.Namespace) -> int:
    config = SendConfig(
        given.clip,
        to=f"rtp://127.0.0.1:{given.port}",
        n=given.n,
        manifold=given.manifold,
        coder=given.coder,
        channel=ChannelSettings(bit_error_rate=given.bit_error_rate, loss=given.loss),
        loop=True,
    )
    options = f"--seconds {given.seconds:g} --manifold {given.manifold} --n {given.n} --coder {given.coder}"
    about = {
        "command": f"python scripts/soak.py {Path(given.clip).name} {options} --loss {given.loss:g}"
        f" --bit-error-rate {given.bit_error_rate:g}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "note": given.note,
    }

    def tell(samples: list[Sample]) -> None:
        print(samples[-1], file=sys.stderr, flush=True)

    done = soak(config, given.seconds, progress=tell)
    write_or_print(given.output, {**about, **asdict(done)})
    print(f"grew {done.growth_mb:.1f} MB, drift {done.drift_ms} ms; {'; '.join(done.problems) or 'passed'}", file=sys.stderr)
    return int(bool(done.problems))


if __name__ == "__main__":
    sys.exit(main())
