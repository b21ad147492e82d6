"""A stream to a file: one lane and its sound, until the sender, the time or the user ends it."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcode.codec import Model
from mcode.errors import InputError, McodeError
from mcode.lanes import LaneCounters, finder
from mcode.receive.network import Network
from mcode.receive.recorder import Recorder

_WAIT_S = 30.0
"""How long `receive_to_file` waits for the first packet."""
_MOST_REPAIR_S = 20.0
"""A recording has time to wait for repair, of slow streams, too."""
_LONGEST_TAIL_S = _MOST_REPAIR_S + 1.0
"""Silence behind a gap may be waiting for its repair: longer than a reception holds it."""
_LONGEST_PAUSE_S = 60.0
"""Without a picture, while reports come: the longest bundles are longer than idle_s and wait_s."""
_GOODBYE_S = 0.5
"""For how long what a goodbye overtook is waited for."""


@dataclass(frozen=True)
class ReceiveReport:
    """lane: "mcode", "h264" or "h265". duration_s: of the picture written. audio_packets: written beside it."""

    frames: int
    duration_s: float
    lane: str
    width: int
    height: int
    manifold_id: str | None
    n: int | None
    coder: str | None
    audio_packets: int
    counters: LaneCounters
    warnings: tuple[str, ...] = ()


def receive_to_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    duration_s: float | None = None,
    manifold: str | os.PathLike[str] | Model | None = None,
    device: str = "auto",
    lane: str = "mcode",
    audio: bool = True,
    size: tuple[int, int] | None = None,
    bind_to: str | None = None,
    wait_s: float = _WAIT_S,
    idle_s: float = 10.0,
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    stop: threading.Event | None = None,
) -> ReceiveReport:
    """Writes one lane ("mcode" or "baseline"), every frame of it, and the sound to a file (see FrameWriter for its
    name).

    Ends after duration_s, when the sender says goodbye, when it is silent for idle_s, or when `stop` is set. Raises
    InputError where nothing comes within wait_s (while the sender reports, of up to a minute later), ManifoldError for a
    stream of a manifold that is not installed; once frames are written that ends the file, with a warning.
    """
    if lane not in ("mcode", "baseline"):
        raise InputError(f"--lane {lane}: choose mcode or baseline")
    stop = stop or threading.Event()
    movie = Path(output).suffix.lower() in (".mp4", ".mkv")
    names = (lane, "audio") if audio and movie else (lane,)
    recorder = Recorder(output, size, force)  # first: a name that cannot be written is refused before anything is listened to
    wanted: dict[str, Any] = {"lanes": names, "needed": lane, "most_repair_s": _MOST_REPAIR_S}
    network = Network(source, finder(manifold, device), bind_to=bind_to, **wanted)
    try:
        _receive(network, recorder, source, duration_s, wait_s, idle_s, stop, progress)
        recorder.close()
    except BaseException:
        recorder.abort()
        raise
    finally:
        network.close()
        recorder.release()
    link = network.links[0]
    warnings = list(recorder.warnings)
    if link.lane.error is not None:
        warnings.append(str(link.lane.error))
    return ReceiveReport(
        frames=recorder.frames,
        duration_s=recorder.length_s,
        lane=lane if lane == "mcode" else link.lane.codec or "h264",
        width=recorder.width,
        height=recorder.height,
        manifold_id=recorder.stream.manifold_id.hex() if recorder.stream else None,
        n=recorder.stream.n if recorder.stream else None,
        coder=recorder.stream.coder if recorder.stream else None,
        audio_packets=recorder.audio_packets,
        counters=link.counters(time.monotonic(), frames=recorder.frames),
        warnings=tuple(warnings),
    )


def _receive(
    network: Network,
    recorder: Recorder,
    source: str | os.PathLike[str],
    duration_s: float | None,
    wait_s: float,
    idle_s: float,
    stop: threading.Event,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    picture = network.links[0]
    started_s = last_s = time.monotonic()
    goodbye_s: float | None = None
    ended = False
    while True:
        ended = ended or stop.is_set()
        try:
            units = network.flush() if ended else network.wait(0.1)
        except McodeError as error:
            if not recorder.frames:
                raise
            recorder.warnings.append(str(error))
            return
        for link, unit in units:  # all of it, before a picture may end the recording
            if link.name == "audio":
                recorder.hear(link, unit)
        for link, unit in units:
            if link.name == "audio":
                continue
            for frame in picture.lane.decode(unit):
                recorder.push(frame, unit, link)
                if duration_s is not None and recorder.length_s >= duration_s:
                    return
            if picture.lane.error is not None:
                if not recorder.frames:
                    raise picture.lane.error
                return  # what came before is kept, and the report warns
            if progress is not None:
                progress(recorder.frames, None)
        if ended:
            break
        now = time.monotonic()
        if units:  # decoded by now, which may take longer than idle_s: a manifold is loaded
            last_s = now
        goodbye_s = (goodbye_s or now) if picture.said_goodbye else None
        tail_s = 0.0 if picture.lane.deadline_s is None else _LONGEST_TAIL_S
        if goodbye_s is not None and now - max(last_s, goodbye_s) > _GOODBYE_S:
            ended = True
        elif recorder.frames and now - max(last_s, min(picture.heard_s, last_s + _LONGEST_PAUSE_S)) > idle_s + tail_s:
            recorder.warnings.append(f"the sender fell silent; what came in {recorder.length_s:.1f} s is written")
            ended = True
        elif not recorder.frames and now - max(started_s, min(picture.heard_s, started_s + _LONGEST_PAUSE_S)) > wait_s:
            ended = True
        if ended:
            recorder.most_sound_s = math.inf if duration_s is None else duration_s
    if not recorder.frames and not stop.is_set():
        what = os.fspath(source)
        if not any(link.heard for link in network.links):
            raise InputError(f"{what}: nothing came in {now - started_s:.0f} s; is the sender running and sending here?")
        if picture.heard_s and not picture.reception.last_arrival_s:
            raise InputError(
                f"{what}: a sender reports, but sent no picture in {now - started_s:.0f} s; does its --bundle fill?"
            )
        raise InputError(f"{what}: packets came, but no picture; is it a stream of mcode send?")
