"""The demo clip: scenes which MCode renders itself, with sound, the same for the same seed. For demos and tests.

"arms": a figure with moving arms before a textured wall; "face": a talking head; "pan": a slow pan across a painted
landscape; "demo": the three in a row, a third of the time each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame
from mcode.testclip.scenes import Arms, Face, Pan
from mcode.testclip.sound import RATE, render_audio
from mcode.video import OutputFile

SCENES = ("demo", "arms", "face", "pan")
MOST_SIDE, MOST_PIXELS = 16_384, 8192 * 8192
"""x264 takes no longer side."""
MOST_S = 600
"""Its sound takes 3 GB and a minute and a half before the first frame; the time grows with the square."""
_SINGLE: dict[str, type[Arms | Face | Pan]] = {"arms": Arms, "face": Face, "pan": Pan}

__all__ = ["RATE", "SCENES", "render_audio", "render_frames", "write_clip"]


def render_frames(
    scene: str = "demo", seconds: float = 9.0, fps: int = 25, size: tuple[int, int] = (640, 360), seed: int = 0
) -> Iterator[Frame]:
    """Frames of a scene; size is (width, height). Raises InputError for an unknown scene or an unusable size or
    length."""
    _check(scene, seconds, size)
    total = max(1, round(seconds * fps))
    names = tuple(_SINGLE) if scene == "demo" else (scene,)
    done = 0
    for index, name in enumerate(names):
        count = total * (index + 1) // len(names) - done
        painter = _SINGLE[name](size, seconds / len(names), seed)
        for i in range(count):
            picture = painter.paint(i / fps)
            rgb = picture if picture.dtype == np.uint8 else np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
            yield Frame(np.ascontiguousarray(rgb), round((done + i) * TICKS_PER_S / fps))
        done += count


def _check(scene: str, seconds: float, size: tuple[int, int]) -> None:
    if scene not in SCENES:
        raise InputError(f"scene {scene}: choose {', '.join(SCENES)}")
    if min(size) < 16:
        raise InputError(f"size {size[0]}x{size[1]}: a clip is at least 16x16")
    if max(size) > MOST_SIDE or size[0] * size[1] > MOST_PIXELS:
        most = f"{MOST_SIDE} pixels a side and {MOST_PIXELS // 1_000_000} million in all"
        raise InputError(f"size {size[0]}x{size[1]}: a clip has at most {most}; choose a smaller size")
    if not 0 <= seconds <= MOST_S:
        raise InputError(f"{seconds:g} seconds: a clip is at most {MOST_S} s long")


def write_clip(
    path: str | os.PathLike[str],
    *,
    scene: str = "demo",
    seconds: float = 9.0,
    fps: int = 25,
    size: tuple[int, int] = (640, 360),
    seed: int = 0,
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> None:
    """Renders a scene into an MP4 (H.264 CRF 16, AAC). Raises InputError as render_frames and video.OutputFile do."""
    path = Path(path)
    if path.suffix.lower() not in (".mp4", ".mkv"):
        raise InputError(f"{path}: a clip is written as .mp4 or .mkv")
    _check(scene, seconds, size)
    total = max(1, round(seconds * fps))
    file = OutputFile(path, force=force, remedy="name a file, as clip.mp4")
    try:
        output = av.open(file, "w", format="mp4" if path.suffix.lower() == ".mp4" else "matroska")
        even = size[0] % 2 == 0 and size[1] % 2 == 0
        video = output.add_stream("libx264", rate=fps, options={"crf": "16", "preset": "veryfast"})
        video.width, video.height = size
        video.pix_fmt = "yuv420p" if even else "yuv444p"
        audio = output.add_stream("aac", rate=RATE, layout="mono")
        sound = render_audio(scene, seconds, seed)
        for index, frame in enumerate(render_frames(scene, seconds, fps, size, seed)):
            picture = av.VideoFrame.from_ndarray(frame.rgb, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, fps)
            output.mux(video.encode(picture))
            for start in range(index * RATE // fps, (index + 1) * RATE // fps, 1024):
                part = sound[start : min(start + 1024, (index + 1) * RATE // fps)]
                if len(part):
                    block = av.AudioFrame.from_ndarray(part[None], format="s16", layout="mono")
                    block.sample_rate, block.pts, block.time_base = RATE, start, Fraction(1, RATE)
                    output.mux(audio.encode(block))
            if progress:
                progress(index + 1, total)
        output.mux(video.encode(None))
        output.mux(audio.encode(None))
        output.close()
        file.commit()
    finally:
        file.discard()  # of an unfinished clip: PyAV writes no trailer into a closed file
