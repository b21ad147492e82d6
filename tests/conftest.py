"""What several tests share: the training data where it is at hand, small clips, a free port, the commands, few threads."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import av
import numpy as np
import pytest
from hypothesis import settings

from mcode.testclip import write_clip

settings.register_profile("mcode", deadline=None)  # a busy machine is no failure
settings.load_profile("mcode")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data/README.md: $MCODE_DATA, or shared/data beside the checkout. Tests skip without it."""
    beside = Path(__file__).parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("MCODE_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no training data at {folder} (set MCODE_DATA)")
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96x64, 25 Hz, 2 s, with sound: a figure that moves its arms."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, scene="arms", seconds=2, size=(96, 64), seed=1)
    return path


@pytest.fixture(scope="session")
def clip_with_sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds, 64x48, a 440 Hz tone."""
    from mcode.send import test_picture

    path = tmp_path_factory.mktemp("clip") / "tone.mp4"
    with av.open(os.fspath(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"crf": "10", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream("aac", rate=44_100, layout="mono")
        for index in range(75):
            out.mux(video.encode(av.VideoFrame.from_ndarray(test_picture(index, 64, 48), "rgb24")))
        out.mux(video.encode(None))
        t = np.arange(3 * 44_100) / 44_100
        tone = (0.4 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
        for at in range(0, len(tone), 1024):
            piece = av.AudioFrame.from_ndarray(tone[None, at : at + 1024], format="fltp", layout="mono")
            piece.sample_rate, piece.pts = 44_100, at
            out.mux(sound.encode(piece))
        out.mux(sound.encode(None))
    return path


@pytest.fixture
def port() -> int:
    """A port with the four behind it free."""
    while True:
        first = random.randrange(20_000, 60_000, 2)
        held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        try:
            for lane, each in enumerate(held):
                each.bind(("127.0.0.1", first + 2 * lane))
            return first
        except OSError:
            continue
        finally:
            for each in held:
                each.close()


@pytest.fixture
def nothing_is_left_running(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Senders of a test that failed are ended, and none may leave a thread behind."""
    from mcode.send import Sender

    made = []
    start = Sender.start

    def noted(sender):
        made.append(sender)
        start(sender)

    monkeypatch.setattr(Sender, "start", noted)
    yield
    for sender in made:
        sender.close()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("mcode-")]
    assert left == [], left


@pytest.fixture
def mcode(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """mcode("study", ...) -> (status, stdout, stderr)."""
    from mcode import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
