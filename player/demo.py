"""The demo: a rendered talking head, and the manifold learned from an earlier stretch of it. No Qt.

Both lie in the package; `python -m player.demo` makes them anew. Where they are missing, they are made on first use.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame

SIZE = 128, 128
FPS = 25
LEARN_S, SHOW_S = 24.0, 8.0
M = 48
SEED = 3
PACKAGED = Path(__file__).parent / "assets"
VERSION = 1
"""Goes up with every change to what is rendered: old copies are then made anew."""


@dataclass(frozen=True)
class Demo:
    """clip: the stretch to show, which the manifold has not seen."""

    clip: Path
    manifold: Path

    @property
    def is_there(self) -> bool:
        return self.clip.exists() and self.manifold.exists()


def _in(folder: Path) -> Demo:
    return Demo(folder / "talking-head.mp4", folder / "demo-head.safetensors")


def demo_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mcode" / f"demo-{VERSION}"


def prepare(progress: Callable[[str], None] = lambda text: None, folder: Path | None = None) -> Demo:
    """The demo's files, made where missing: a minute of work. Raises InputError where they cannot be written."""
    if folder is None:
        packaged = _in(PACKAGED)
        if packaged.is_there:
            return packaged
        folder = demo_folder()
    demo = _in(folder)
    if demo.is_there:
        return demo
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot keep the demo there ({error.strerror}); set XDG_CACHE_HOME") from error
    lesson = folder / "lesson.mp4"
    _render(lesson, demo.clip, progress)
    progress("Learning a manifold")
    from mcode.training.adapt import adapt_linear

    card = {
        "title": "rendered talking head of the player's demo",
        "data": f"{LEARN_S:g} s rendered by mcode.testclip, no camera footage",
        "license": "as MCode",
        "training_command": "python -m player.demo",
        "not_for": "anything but the player's demo",
    }
    adapt_linear([lesson], demo.manifold, m=M, size=SIZE, force=True, name="demo-head", card=card)
    lesson.unlink(missing_ok=True)
    return demo


def _render(lesson: Path, clip: Path, progress: Callable[[str], None]) -> None:
    from mcode.testclip.scenes import Face
    from mcode.video import FrameWriter

    scene = Face(SIZE, LEARN_S + SHOW_S, SEED)
    learned = math.ceil(LEARN_S * FPS)
    count = math.ceil((LEARN_S + SHOW_S) * FPS)
    period = TICKS_PER_S // FPS
    with (
        FrameWriter(lesson, width=SIZE[0], height=SIZE[1], force=True) as first,
        FrameWriter(clip, width=SIZE[0], height=SIZE[1], force=True) as second,
    ):
        for index in range(count):
            if index % 5 == 0:
                progress(f"Rendering the demo, once: {100 * index // count} %")
            rgb = scene.paint(index / FPS)
            if index < learned:
                first.push(Frame(rgb, index * period))
            else:
                second.push(Frame(rgb, (index - learned) * period))


if __name__ == "__main__":
    for old in (_in(PACKAGED).clip, _in(PACKAGED).manifold):
        old.unlink(missing_ok=True)
    print(prepare(print, PACKAGED))
