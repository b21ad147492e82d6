"""Playing a file and comparing live, without a window: the test moves on by tick() and waits with a limit."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from mcode.codec import Encoder
from mcode.container import McodeWriter
from mcode.errors import FormatError, InputError, ManifoldError
from mcode.frame import TICKS_PER_S, Frame
from mcode.video import centre_crop, resize
from player.clock import Clock
from player.compare import Compare, _BaselineSide, _MCodeSide
from player.playback import Playback
from player.session import Session, Settings, every
from player.sources import open_source
from tests.block_means import FPS, TICKS, BlockMeans, grey

PATIENCE_S = 60.0


def wait_until(session: Session, true: Callable[[], bool], limit_s: float = PATIENCE_S) -> None:
    end_s = time.monotonic() + limit_s
    while not true():
        session.tick()
        assert session.failed is None, session.failed
        assert time.monotonic() < end_s, "it took too long"
        time.sleep(0.002)


@pytest.fixture
def mcode_clip(tmp_path):
    """Two seconds, each frame of its own grey, a refresh every half second."""
    path = tmp_path / "clip.mcode"
    encoder = Encoder(BlockMeans(), 64, 48, n=4, coder="fixed", refresh_s=0.5, cuts=False)
    with McodeWriter(path) as writer:
        for index in range(50):
            for packet in encoder.push(grey(4 * index, index, 64, 48)):
                writer.write(packet, 4)
        for packet in encoder.flush():
            writer.write(packet, 4)
        writer.close(TICKS)
    return path


@pytest.fixture
def playback(mcode_clip):
    session = Playback(mcode_clip, manifold=BlockMeans())
    yield session
    session.close()


def shown(session: Session) -> int:
    """The number of the frame on the screen."""
    return round(session.lanes[0].newest.pts / TICKS)


def test_file_plays_from_its_first_frame_to_its_end(playback):
    playback.start()
    playback.clock.paused = True
    wait_until(playback, lambda: playback.lanes[0].newest is not None)
    assert shown(playback) == 0 and playback.busy is None
    assert playback.duration_s == pytest.approx(2.0)
    assert playback.refreshes_s[0] == 0 and len(playback.refreshes_s) >= 3
    playback.pause(False)
    wait_until(playback, lambda: playback.ended)
    assert shown(playback) == 49 and playback.clock.paused
    assert int(playback.lanes[0].newest.rgb.mean()) == pytest.approx(196, abs=2)
    playback.seek(0.5)
    assert not playback.ended
    wait_until(playback, lambda: shown(playback) == 12)
    assert not playback.ended
    playback.seek(playback.duration_s)
    playback.pause(False)
    wait_until(playback, lambda: playback.ended)
    playback.pause(False)  # play again: from the start
    wait_until(playback, lambda: shown(playback) < 20)


def test_seek_shows_the_frame_of_that_time(playback):
    playback.start()
    playback.clock.paused = True
    for frame in (30, 7, 49, 0):
        playback.seek((frame + 0.5) / FPS)
        wait_until(playback, lambda wanted=frame: playback.lanes[0].newest is not None and shown(playback) == wanted)
        assert int(playback.lanes[0].newest.rgb.mean()) == pytest.approx(4 * frame, abs=2)


def test_steps_go_one_frame_each_way_and_pause(playback):
    playback.start()
    playback.seek(1.0)
    wait_until(playback, lambda: playback.lanes[0].newest is not None)
    playback.pause(True)
    wait_until(playback, lambda: playback.lanes[0].next_s() is not None)
    here = shown(playback)
    playback.step(1)
    wait_until(playback, lambda: shown(playback) == here + 1)
    playback.step(-1)
    wait_until(playback, lambda: shown(playback) == here)
    playback.step(-1)
    wait_until(playback, lambda: shown(playback) == here - 1)
    assert playback.clock.paused


def test_step_back_after_a_seek_is_one_frame_back_from_there(playback):
    playback.start()
    wait_until(playback, lambda: playback.lanes[0].newest is not None and playback.position_s > 0.2)
    playback.pause(True)
    playback.seek(40.5 / FPS)
    wait_until(playback, lambda: shown(playback) == 40)
    playback.step(-1)
    wait_until(playback, lambda: shown(playback) != 40)
    assert shown(playback) == 39


def test_step_back_does_not_skip_frames_dropped_while_playing(playback):
    playback.start()
    playback.pause(True)
    wait_until(playback, lambda: not playback._filling and playback.lanes[0].newest is not None)
    wait_until(playback, lambda: len(playback.lanes[0]._waiting) > 4)
    playback.clock.time_s = 4.5 / FPS  # a window that was busy for so long
    playback.tick()
    assert shown(playback) == 4
    for wanted in (3, 2, 1, 0):
        playback.step(-1)
        wait_until(playback, lambda wanted=wanted: shown(playback) != wanted + 1)
        assert shown(playback) == wanted


def test_quick_steps_all_count(playback):
    playback.start()
    playback.pause(True)
    playback.seek(30.5 / FPS)
    wait_until(playback, lambda: playback.lanes[0].newest is not None and shown(playback) == 30)
    for _ in range(4):
        playback.step(-1)
    wait_until(playback, lambda: not playback._filling)
    assert shown(playback) == 26
    for frames in (1, 1, 1, -1):
        playback.step(frames)
    wait_until(playback, lambda: not playback._steps)
    assert shown(playback) == 28


def test_uneven_frames_are_stepped_back_through_as_they_were_shown(tmp_path):
    path, times = tmp_path / "uneven.mcode", [0, 1, 2, 12, 13, 30, 31]
    encoder = Encoder(BlockMeans(), 64, 48, n=1, coder="fixed", cuts=False)
    with McodeWriter(path) as writer:
        for number, time_frames in enumerate(times):
            for packet in encoder.push(grey(30 * number, time_frames, 64, 48)):
                writer.write(packet, 1)
        writer.close(TICKS)
    session = Playback(path, manifold=BlockMeans())
    session.start()
    session.pause(True)
    try:
        wait_until(session, lambda: session.lanes[0].newest is not None)
        for wanted in times[1:]:
            session.step(1)
            wait_until(session, lambda wanted=wanted: shown(session) == wanted)
        for wanted in reversed(times[:-1]):
            session.step(-1)
            wait_until(session, lambda wanted=wanted: shown(session) == wanted)
    finally:
        session.close()


def test_rate_of_a_file_is_that_of_its_pictures_at_any_speed(playback):
    playback.start()
    playback.pause(True)
    playback.seek(1.9)
    wait_until(playback, lambda: playback.lanes[0].newest is not None)
    bits = [(packet.pts / TICKS_PER_S, 8 * sum(map(len, packet.slices))) for packet in playback.reader]
    began_s = max(at_s for at_s, _ in bits if at_s in playback.refreshes_s and at_s <= 1.9)
    true = sum(each for at_s, each in bits if began_s <= at_s <= 1.9) / max(0.5, 1.9 - began_s) / 1000
    counters = playback.lanes[0].counters
    assert counters.rate_kbps == pytest.approx(true, rel=0.05)
    playback.step(-1)
    assert counters.rate_kbps == pytest.approx(true, rel=0.05)  # until the picture is there


def test_loop_begins_again(playback):
    playback.start()
    playback.loop = True
    playback.seek(1.9)
    wait_until(playback, lambda: playback.lanes[0].newest is not None)
    wait_until(playback, lambda: shown(playback) < 20)
    assert not playback.ended and not playback.clock.paused


def test_seek_in_the_midst_of_a_tick_is_no_error(playback):
    class Overtaken(deque):
        """Looked at, it has the decoder begin at another place before the look is over."""

        def __getitem__(self, index):
            first = super().__getitem__(index)
            playback.seek(1.0)
            end_s = time.monotonic() + PATIENCE_S
            while self and playback._unshown is self:
                assert time.monotonic() < end_s, "the decoder did not begin anew"
                time.sleep(0.002)
            return first

        def append(self, keyframe):
            pass

    playback.start()
    wait_until(playback, lambda: playback.lanes[0].newest is not None)
    playback._unshown = Overtaken([(0, 8)])
    playback.tick()
    wait_until(playback, lambda: playback.lanes[0].newest.pts_s >= 1.0)


def test_channel_damages_the_picture_that_stands_and_heals_when_reset(playback):
    playback.start()
    playback.clock.paused = True
    playback.seek(1.0)
    wait_until(playback, lambda: playback.lanes[0].newest is not None)
    clean = playback.lanes[0].newest.rgb
    playback.settings = Settings(n=4, coder="fixed", bit_error_rate=0.05)
    wait_until(playback, lambda: not np.array_equal(playback.lanes[0].newest.rgb, clean))
    assert playback.lanes[0].counters.packets_damaged > 0
    playback.settings = Settings(n=4, coder="fixed")
    wait_until(playback, lambda: np.array_equal(playback.lanes[0].newest.rgb, clean))


def test_wrong_manifold_is_named(mcode_clip):
    class Other(BlockMeans):
        id = "ffffffffffffffff"

    session = Playback(mcode_clip, manifold=Other())
    session.start()
    end_s = time.monotonic() + PATIENCE_S
    while session.failed is None and time.monotonic() < end_s:
        time.sleep(0.01)
    session.close()
    assert BlockMeans.id in session.failed and "manifold" in session.failed


def test_a_still_has_one_rate(tmp_path):
    from player.view import caption_values

    path = tmp_path / "still.mcode"
    encoder = Encoder(BlockMeans(), 64, 48, n=1, coder="fixed")
    with McodeWriter(path) as writer:
        for packet in [*encoder.push(grey(90, 0, 64, 48)), *encoder.flush()]:
            writer.write(packet, 1)
    session = Playback(path, manifold=BlockMeans())
    wanted = f"{8 * session.reader.payload_bytes / (64 * 48):.3f} bit/pixel"
    session.start()
    wait_until(session, lambda: session.ended)
    assert session.still and dict(session.stats())["Rate"] == wanted
    assert caption_values(session.lanes[0]) == [wanted]
    session.close()


def test_stats_tell_the_stream(playback):
    rows = dict(playback.stats())
    assert rows["Picture"] == "64 × 48" and "every 4 frames, fixed" in rows["Keyframes"]
    assert every(1) == "every frame"


class PaintedFeed:
    """Frames made by a function of time (seconds) giving uint8 (H, W, 3)."""

    audio_path: str | None = None

    def __init__(
        self,
        title: str,
        paint: Callable[[float], np.ndarray],
        size: tuple[int, int],
        fps: float = 25.0,
        duration_s: float | None = None,
    ) -> None:
        self.title, self.size, self.fps, self.duration_s = title, size, fps, duration_s
        self.live = False
        self._paint = paint

    def frames(self, start_s: float, size: tuple[int, int], crop_to: tuple[int, int] | None) -> Iterator[Frame]:
        period = round(TICKS_PER_S / self.fps)
        index = 0
        while self.duration_s is None or start_s + index / self.fps < self.duration_s:
            rgb = self._paint(start_s + index / self.fps)
            yield Frame(resize(centre_crop(rgb, crop_to) if crop_to else rgb, *size), index * period)
            index += 1


def stripes(t: float) -> np.ndarray:
    """A picture in which everything moves."""
    x, y = np.meshgrid(np.arange(64), np.arange(48))
    wave = 128 + 90 * np.sin((x + 40 * t) / 9) * np.cos((y - 25 * t) / 7)
    return np.stack([wave, np.roll(wave, 9, 1), 255 - wave], -1).astype(np.uint8)


@pytest.fixture
def compare():
    feed = PaintedFeed("stripes", stripes, (64, 48), fps=FPS, duration_s=4.0)
    session = Compare(feed, load=lambda name: BlockMeans(), settings=Settings(coder="fixed", manifold="blocks"))
    session.start()
    yield session
    session.close()


def all_shown(session: Compare, times: int = 12) -> bool:
    return all(lane.serial >= times for lane in session.lanes)


def test_all_lanes_run_at_once(compare):
    wait_until(compare, lambda: all_shown(compare) and compare.lanes[0].counters.psnr_db > 0)
    names = [lane.name for lane in compare.lanes]
    assert names == ["mcode", "baseline", "original"]
    assert compare.lanes[0].counters.rate_kbps > 0 and compare.lanes[1].counters.rate_kbps > 0
    assert -1 <= compare.lanes[0].counters.ssim <= 1
    assert compare.coded == (64, 48)
    assert not compare.notices


def test_lanes_show_the_same_moment(compare):
    wait_until(compare, lambda: all_shown(compare))
    compare.pause(True)
    for _ in range(40):  # what is under way arrives
        compare.tick()
        time.sleep(0.02)
    times = [lane.newest.pts for lane in (compare.lanes[0], compare.lanes[2])]
    assert abs(times[0] - times[1]) <= 5 * TICKS


def test_n_and_coder_act_while_it_runs(compare):
    wait_until(compare, lambda: all_shown(compare, 6))
    for settings in (
        Settings(n=1, coder="huffman", manifold="blocks"),
        Settings(n=9, coder="fixed", manifold="blocks"),
    ):
        compare.settings = settings
        before = compare.lanes[0].serial
        wait_until(compare, lambda: compare._sides[0]._encoder.header.n == compare.settings.n)
        assert compare._sides[0]._encoder.header.coder == settings.coder
        wait_until(compare, lambda start=before: compare.lanes[0].serial > start + 12)


def test_adaptive_and_quality_act_while_it_runs():
    model = BlockMeans()
    model.qualities = 1
    feed = PaintedFeed("stripes", stripes, (64, 48), fps=FPS, duration_s=4.0)
    session = Compare(feed, load=lambda name: model, settings=Settings(n=8, coder="fixed", manifold="blocks", quality=7))
    session.start()
    try:
        wait_until(session, lambda: all_shown(session, 6))
        assert ("Keyframes", "every 8 frames, fixed, quality 1") in session.stats()
        assert list(session.notices) == [f"{model.id} has qualities 1 to 1; 1 is shown instead of 7"]
        session.settings = replace(session.settings, adaptive=True)
        wait_until(session, lambda: session._sides[0]._encoder.adaptive)
        before = session.lanes[0].serial
        wait_until(session, lambda: session.lanes[0].serial > before + 12)
        assert ("Keyframes", "every 8 frames or sooner, fixed, quality 1") in session.stats()
    finally:
        session.close()


def encoding_alone(size: tuple[int, int], settings: Settings) -> _MCodeSide:
    """MCode's side of a comparison that does not run: the test gives it frames."""
    session = Compare(PaintedFeed("noise", stripes, size, fps=FPS, duration_s=20.0), settings=settings)
    session.model = BlockMeans()
    return _MCodeSide(session, session.lanes[0])


def noise(count: int, size: tuple[int, int]) -> list[Frame]:
    rng = np.random.default_rng(0)
    return [Frame(rng.integers(100, 156, (size[1], size[0], 3)).astype(np.uint8), i * TICKS) for i in range(count)]


@pytest.mark.parametrize(("size", "slices"), [((32, 24), 1), ((64, 48), 4)])
def test_a_rate_is_that_of_the_rtp_packets(size, slices):
    frames = noise(500, size)

    def kbps(**options) -> float:
        side = encoding_alone(size, Settings(coder="fixed", **options))
        packets = [packet for frame in frames for packet in side.encode(frame)]
        assert len(packets[0].slices) == slices
        return sum(side.link.send(packet, packet.pts / TICKS_PER_S) for packet in packets) * 8 / 1000 / 20

    every = kbps(n=1)
    for share in (0.1, 0.4):
        assert kbps(n=32, rate_kbps=share * every) == pytest.approx(share * every, rel=0.04)


def test_a_rate_acts_from_the_next_frame_on():
    side = encoding_alone((64, 48), Settings(n=9, coder="fixed"))
    frames = iter(noise(74, (64, 48)))
    for rate_kbps, steps, told in ((None, 9, "every 9 frames"), (100_000.0, 1, "every 9 frames or sooner")):
        side.session.settings = replace(side.session.settings, rate_kbps=rate_kbps)
        packets = [packet for _ in range(37) for packet in side.encode(next(frames))]
        assert {packet.steps for packet in packets[-4:]} == {steps}
        assert dict(side.session.stats())["Keyframes"] == f"{told}, fixed, quality 1"


def test_a_rate_that_is_moved_brings_no_whole_keyframes():
    side = encoding_alone((64, 48), Settings(n=9, coder="fixed", rate_kbps=50.0))
    packets = []
    for number, frame in enumerate(noise(50, (64, 48))):
        side.session.settings = replace(side.session.settings, rate_kbps=50.0 - number / 2)
        packets += side.encode(frame)
    assert [packet.header is not None for packet in packets] == [True] + [False] * (len(packets) - 1)


def test_channel_acts_on_both_lanes(compare):
    wait_until(compare, lambda: all_shown(compare, 4))
    compare.settings = Settings(coder="fixed", manifold="blocks", loss=0.5, bit_error_rate=1e-2)
    wait_until(compare, lambda: all(lane.counters.packets_lost > 2 for lane in compare.lanes[:2]))
    wait_until(compare, lambda: all(lane.counters.packets_damaged > 2 for lane in compare.lanes[:2]))


def test_unknown_manifold_is_told_and_the_old_one_stays(compare):
    wait_until(compare, lambda: all_shown(compare, 4))

    def load(name):
        raise ManifoldError(f"no manifold named {name!r} is installed")

    compare._load = load
    compare.settings = Settings(coder="fixed", manifold="nowhere")
    wait_until(compare, lambda: bool(compare.notices))
    assert "nowhere" in compare.notices[0]
    before = compare.lanes[0].serial
    wait_until(compare, lambda: compare.lanes[0].serial > before + 6)


class Still:
    """A wall clock that stands: a test moves the pictures' clock alone."""

    def __call__(self) -> float:
        return 0.0


def test_both_lanes_take_the_same_rate_of_the_pictures_time():
    feed = PaintedFeed("stripes", stripes, (64, 48), fps=FPS, duration_s=30.0)
    session = Compare(feed, load=lambda name: BlockMeans(), clock=Clock(Still()), settings=Settings(n=1, coder="fixed"))
    session.model = BlockMeans()
    session._lay_out()
    sides = session._sides = [_MCodeSide(session, session.lanes[0]), _BaselineSide(session, session.lanes[1])]
    sent = []
    for frame in feed.frames(0.0, (64, 48), None):
        session.clock.time_s = frame.pts_s
        for side in sides:
            side.send(frame)
        sent.append([side.link.sent_bytes for side in sides])
    true = [8 * (last - before) / 1000 / 3 for last, before in zip(sent[-1], sent[-1 - 3 * FPS], strict=True)]
    assert true[1] == pytest.approx(true[0], rel=0.35)
    for lane, kbps in zip(session.lanes, true, strict=False):
        assert lane.counters.rate_kbps == pytest.approx(kbps, rel=0.05)
    session.close()


def test_quick_seeks_and_steps_back_in_a_comparison_all_count(compare):
    wait_until(compare, lambda: all_shown(compare, 4))
    compare.pause(True)
    compare.seek(3.0)
    assert compare.place_s == 3.0
    wait_until(compare, lambda: compare.position_s >= 2.9)
    here_s = compare.position_s
    assert compare.place_s == pytest.approx(here_s, abs=1 / FPS)
    for _ in range(4):
        compare.step(-1)
        compare.tick()
    wait_until(compare, lambda: compare.position_s < here_s - 0.5 / FPS and compare._target_s is None)
    assert compare.place_s == pytest.approx(here_s - 4 / FPS, abs=1.5 / FPS)


def test_a_video_that_tells_no_duration_is_not_live():
    feed = PaintedFeed("raw", stripes, (64, 48))
    session = Compare(feed, load=lambda name: BlockMeans())
    assert not session.live and session.duration_s is None
    session.seek(3.0)
    assert session._target_s == 0.0
    session.close()


def test_seek_in_a_comparison_moves_the_position(compare):
    wait_until(compare, lambda: all_shown(compare, 4))
    compare.seek(3.0)
    wait_until(compare, lambda: compare.position_s >= 3.0)
    assert compare.position_s <= 4.0


def test_source_loops(compare):
    wait_until(compare, lambda: all_shown(compare, 4))
    compare.seek(3.8)
    wait_until(compare, lambda: compare.position_s >= 3.8)
    wait_until(compare, lambda: compare.position_s < 2.0)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("missing.mcode", InputError, "no such file"),
        (".", InputError, "folder"),
        ("udp://127.0.0.1:5004", InputError, "rtp://HOST:PORT"),
        ("camera:x", InputError, "camera:0"),
        ("camera:99", InputError, "camera 99"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(source, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words) as raised:
        open_source(source)
    assert "\n" not in str(raised.value)


def test_file_of_a_manifold_that_is_not_installed_plays_with_the_one_named(tmp_path):
    from mcode.manifold import load
    from player.demo import prepare

    named = prepare().manifold
    path = tmp_path / "face.mcode"
    encoder = Encoder(load(named), 128, 128, n=2)
    with McodeWriter(path) as writer:
        for index in range(6):
            for packet in encoder.push(grey(100 + index, index, 128, 128)):
                writer.write(packet, 2)
        writer.close(TICKS)
    for manifold, plays in ((os.fspath(named), True), ("nowhere", False), (None, False)):
        session = open_source(path, Settings(manifold=manifold))
        session.start()
        try:
            if plays:
                wait_until(session, lambda session=session: session.lanes[0].newest is not None)
                assert session.model.name == "demo-head"
            else:
                end_s = time.monotonic() + PATIENCE_S
                while session.failed is None and time.monotonic() < end_s:
                    session.tick()
                    time.sleep(0.005)
                assert "name it with --manifold" in session.failed
        finally:
            session.close()


def test_broken_mcode_file_is_not_taken_for_a_video(tmp_path):
    path = tmp_path / "broken.mcode"
    path.write_bytes(b"no video at all")
    with pytest.raises(FormatError, match=r"not an \.mcode file"):
        open_source(path)


def test_demo_lies_in_the_package_and_plays():
    from player.demo import prepare

    demo = prepare()
    assert demo.clip.parent == demo.manifold.parent and demo.is_there
    session = open_source("demo:", Settings(n=2))
    assert isinstance(session, Compare)
    session.start()
    try:
        wait_until(session, lambda: all_shown(session, 8) and session.lanes[0].counters.psnr_db > 24)
        assert session.duration_s == pytest.approx(8.0)
    finally:
        session.close()


def test_video_file_is_compared_at_a_size_that_two_cores_can_do(clip, monkeypatch):
    monkeypatch.setattr("player.compare.mcode.manifold.load", lambda name, device: BlockMeans())
    session = open_source(clip, Settings(manifold="blocks"))
    assert isinstance(session, Compare) and session.audio_path == str(clip)
    session.start()
    try:
        wait_until(session, lambda: all_shown(session, 3))
        assert session.coded == (96, 64)
    finally:
        session.close()


def test_large_pictures_are_scaled_to_an_even_size():
    feed = PaintedFeed("large", stripes, (1921, 1081))
    session = Compare(feed, load=lambda name: BlockMeans())
    session.model = BlockMeans()
    session._lay_out()
    width, height = session.coded
    assert width * height <= 640 * 368 * 1.01 and width % 2 == height % 2 == 0
    assert width / height == pytest.approx(1921 / 1081, rel=0.01)


def test_seek_while_paused_shows_the_new_place(compare):
    wait_until(compare, lambda: all_shown(compare, 4))
    compare.pause(True)
    compare.seek(3.0)
    wait_until(compare, lambda: compare.position_s >= 2.9)
    assert compare.clock.paused
    wait_until(compare, lambda: abs(compare.lanes[0].newest.pts - compare.lanes[-1].newest.pts) <= 6 * TICKS)


class Unplugged:
    """A camera that gives ten frames, then stops until it is plugged in again."""

    title, fps, size, duration_s, live, audio_path = "Camera 0", 25.0, (64, 48), None, True, None

    def __init__(self) -> None:
        self.plugged, self.tries = True, 0

    def frames(self, start_s, size, crop_to):
        index = 0
        self.tries += 1
        while self.plugged:
            yield grey(100 + index % 50, index, 64, 48)
            index += 1
        raise InputError("camera 0 stopped; is it still plugged in?")


def test_an_unplugged_camera_is_one_line_and_is_taken_up_again(monkeypatch):
    monkeypatch.setattr("player.compare.RETRY_S", 0.05)
    feed = Unplugged()
    session = Compare(feed, load=lambda name: BlockMeans(), baseline=None)
    session.start()
    try:
        wait_until(session, lambda: session.lanes[0].serial > 3)
        feed.plugged = False
        wait_until(session, lambda: feed.tries > 4)
        assert list(session.notices) == ["camera 0 stopped; is it still plugged in? It is waited for."]
        serial = session.lanes[0].serial
        feed.plugged = True
        wait_until(session, lambda: session.lanes[0].serial > serial + 5)
        assert session.failed is None
    finally:
        session.close()


class Slow(BlockMeans):
    """Takes twice as long for a gap of four frames as they last."""

    def synthesise(self, latents, width, height):
        time.sleep(0.32)
        return super().synthesise(latents, width, height)


def test_a_decoder_too_slow_for_the_clip_drops_frames_and_does_not_lag():
    feed = PaintedFeed("grey", lambda t: np.full((48, 64, 3), 100, np.uint8), (64, 48))
    session = Compare(feed, load=lambda name: Slow(), baseline=None)
    session.start()
    try:
        wait_until(session, lambda: session.clock.time_s > 6.0)
        lane = session.lanes[0]
        wait_until(session, lambda: lane.counters.dropped > 20)
        assert session.due_s - lane.newest.pts_s < 2.0
    finally:
        session.close()
