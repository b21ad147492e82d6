"""The player's parts without a window: clock, counters, lanes, link. They know nothing of Qt."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from dataclasses import replace

import av
import numpy as np
import pytest

from mcode.codec import Encoder
from player.clock import Clock
from player.counters import History, RateMeter, smoothed
from player.lanes import MOST_WAITING, Lane
from player.link import BaselineLink, MCodeLink, cut_to
from player.recorder import Recorder
from player.session import Settings
from tests.block_means import FPS, TICKS, BlockMeans, grey

WITHOUT_QT = (
    "clock",
    "counters",
    "lanes",
    "networks",
    "network_worker",
    "link",
    "session",
    "feeds",
    "playback",
    "compare",
    "demo",
    "sources",
    "remote",
    "recorder",
)


class Wall:
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def test_lanes_and_sessions_import_no_qt():
    program = "import sys\n" + "".join(f"import player.{name}\n" for name in WITHOUT_QT)
    program += "print([m for m in sys.modules if m.split('.')[0] in ('PyQt6', 'pyqtgraph')])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_clock_stands_until_started_and_runs_at_its_speed():
    wall = Wall()
    clock = Clock(wall)
    wall.s += 5
    assert clock.time_s == 0
    clock.paused = False
    wall.s += 2
    assert clock.time_s == pytest.approx(2)
    clock.speed = 4
    assert clock.time_s == pytest.approx(2)
    wall.s += 1
    assert clock.time_s == pytest.approx(6)
    assert clock.wall_until(10) == pytest.approx(1)
    clock.paused = True
    wall.s += 50
    assert clock.time_s == pytest.approx(6)
    assert clock.wall_until(10) == math.inf
    assert clock.wall_until(6) == 0


def test_clock_follows_the_sound_gently_when_near_and_at_once_when_far():
    wall = Wall()
    clock = Clock(wall)
    clock.paused = False
    clock.follow(0.05)
    assert 0 < clock.time_s < 0.05
    for _ in range(200):
        clock.follow(0.05)
    assert clock.time_s == pytest.approx(0.05, abs=1e-4)
    for far in (30, 29):
        clock.follow(far)
        assert clock.time_s == pytest.approx(far)


def test_clock_refuses_to_stand_still_by_speed():
    with pytest.raises(ValueError, match="above 0"):
        Clock().speed = 0


def test_rate_is_the_sum_of_the_window_over_its_length():
    wall = Wall()
    meter = RateMeter(2.0, wall)
    assert meter.per_s == 0
    meter.add(100)
    assert meter.per_s == pytest.approx(200)  # over half a second at least
    wall.s += 1
    meter.add(100)
    assert meter.per_s == pytest.approx(200)  # in the first window: since the first amount
    wall.s += 1.5
    assert meter.per_s == pytest.approx(50)  # the first has left
    wall.s += 10
    assert meter.per_s == 0


def test_rate_by_the_pictures_clock_knows_neither_speed_nor_pause():
    wall = Wall()
    clock = Clock(wall)
    meter = RateMeter(2.0, lambda: clock.time_s)
    clock.paused, clock.speed = False, 0.25
    for _ in range(20):
        wall.s += 1
        meter.add(25)
    assert meter.per_s == pytest.approx(100, rel=0.15)
    clock.paused = True
    before = meter.per_s
    wall.s += 60
    assert meter.per_s == before
    meter.clear()
    clock.time_s = 1.5  # a jump, which the meter is told of
    for frame in range(38):  # what the new place is decoded from
        meter.add(4, frame / 25)
    assert meter.per_s == pytest.approx(100, rel=0.05)


def test_a_cleared_rate_stands_until_the_next_amount():
    wall = Wall()
    meter = RateMeter(2.0, wall)
    meter.add(100)
    wall.s += 1
    meter.clear()
    wall.s += 10
    assert meter.per_s == pytest.approx(100)
    meter.add(7)
    assert meter.per_s == pytest.approx(14)


def test_history_keeps_a_minute_and_gaps_are_nan():
    history = History()
    history.add(a=1.0)
    history.add(a=2.0, b=5.0)
    at_s, values = history.curve("b")
    assert at_s[-1] == 0 and at_s[0] < 0
    assert math.isnan(values[0]) and values[1] == 5
    for i in range(1000):
        history.add(a=float(i))
    at_s, values = history.curve("a")
    assert len(values) == 240 and values[-1] == 999 and at_s[0] >= -60


def test_first_value_of_a_smoothed_mean_counts_whole():
    assert smoothed(0.0, 8.0) == 8.0
    assert smoothed(8.0, 18.0, 0.1) == pytest.approx(9.0)


def test_lane_shows_the_newest_due_frame_and_counts_those_skipped():
    lane = Lane("mcode", "MCode")
    for index in range(5):
        lane.offer(grey(index, index))
    assert lane.show(2 / FPS) and lane.newest.rgb[0, 0, 0] == 2
    assert lane.counters.dropped == 2 and lane.serial == 1
    assert not lane.show(2 / FPS)
    assert lane.next_s() == pytest.approx(3 / FPS)
    assert lane.show(9.0) and lane.newest.rgb[0, 0, 0] == 4
    assert lane.previous_s() == pytest.approx(2 / FPS)


def test_a_cleared_lane_forgets_what_it_showed():
    lane = Lane("mcode", "MCode")
    for index in (0, 1, 4):
        lane.offer(grey(index, index))
        lane.show(9.0)
    lane.clear(shown=False)
    assert lane.previous_s() == pytest.approx(1 / FPS) and lane.previous_s(TICKS) == 0
    lane.clear()
    assert lane.previous_s() is None and lane.newest.pts == 4 * TICKS


def test_lane_knows_between_which_frames_it_dropped_some():
    lane = Lane("mcode", "MCode")
    for index in range(4):
        lane.offer(grey(index, index))
    lane.show(0.0)
    lane.show(1 / FPS)
    lane.show(3 / FPS)
    assert lane.skipped_before(3 * TICKS) and not lane.skipped_before(TICKS)


def test_full_lane_loses_its_oldest_frame_and_memory_stays_bounded():
    lane = Lane("mcode", "MCode")
    for index in range(MOST_WAITING + 10):
        lane.offer(grey(index % 256, index))
    assert lane.counters.dropped == 10
    assert lane.next_s() == pytest.approx(10 / FPS)


def test_waiting_offer_goes_on_as_soon_as_frames_are_shown():
    lane = Lane("mcode", "MCode")
    assert lane.offer_waiting(grey(0, 0), lambda: False, room=1)
    taken = []
    worker = threading.Thread(target=lambda: taken.append(lane.offer_waiting(grey(1, 1), lambda: False, room=1)))
    worker.start()
    lane.show(0.0)
    worker.join(30)
    assert taken == [True] and lane.next_s() == pytest.approx(1 / FPS)
    assert not lane.offer_waiting(grey(2, 2), lambda: True, room=1)


def packets(count: int, **options):
    encoder = Encoder(BlockMeans(), 16, 8, **{"n": 2, "coder": "fixed", "cuts": False, **options})
    return [packet for i in range(count) for packet in encoder.push(grey(10 * i % 250, i))]


def through(link: MCodeLink, sent) -> list:
    return [frame for packet in sent for unit in link.pass_on(packet) for frame in link.lane.decode(unit)]


def test_clean_link_gives_back_every_frame():
    model = BlockMeans()
    link = MCodeLink(Settings(), lambda _: model)
    frames = through(link, packets(9))
    assert [frame.pts for frame in frames] == [i * TICKS for i in range(9)]
    assert [int(frame.rgb.mean()) for frame in frames] == [10 * i for i in range(9)]


def test_slices_that_a_live_stream_refuses_pass_as_in_a_file():
    link = MCodeLink(Settings(), lambda _: BlockMeans())
    (first,) = packets(1)
    large = bytes(range(256)) * (5 << 12)  # 5 MiB
    (unit,) = link.pass_on(replace(first, slices=(large,)))
    assert unit.packet.slices == (large,) and unit.damaged == (False,)


def test_lossy_link_keeps_the_clock_and_counts():
    model = BlockMeans()
    link = MCodeLink(Settings(loss=0.4, seed=3), lambda _: model, header=packets(1)[0].header)
    sent = packets(60)
    frames = through(link, sent)
    times = [frame.pts for frame in frames]
    assert times == sorted(times) and len(set(times)) == len(times)
    assert 0 < link.channel.lost < link.channel.sent == len(sent)


def test_same_seed_damages_alike_and_a_seek_draws_it_on():
    model = BlockMeans()
    results = []
    for _ in range(2):
        link = MCodeLink(Settings(bit_error_rate=1e-2, seed=5), lambda _: model)
        results.append([frame.rgb.tobytes() for frame in through(link, packets(20))])
        link.restart()
        assert link.channel.sent == len(packets(20))
    assert results[0] == results[1]
    assert link.channel.damaged > 0


def test_delay_holds_datagrams_back():
    model = BlockMeans()
    link = MCodeLink(Settings(delay_ms=200), lambda _: model)
    (first,) = packets(1)
    assert link.send(first, 1.0) > 0
    assert link.receive(1.1) == []
    assert len(link.receive(1.25)) == 1
    assert link.sent_s(first.pts) == 1.0


def test_baseline_link_carries_h264():
    from mcode.baseline import BaselineEncoder

    encoder = BaselineEncoder("h264", 64, 48, crf=30, options={"tune": "zerolatency"})
    link = BaselineLink(Settings(), "h264")
    frames = []
    for index in range(4):
        for packet in encoder.push(grey(40 + 20 * index, index, 64, 48)):
            link.send(packet, index / FPS)
        for unit in link.receive(index / FPS):
            frames += link.lane.decode(unit)
    assert [frame.pts for frame in frames] == [i * TICKS for i in range(4)]
    assert abs(float(frames[-1].rgb.mean()) - 100) < 6


class Broken:
    """In place of FrameWriter: its encoder fails, and so does what tidies up."""

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def push(self, frame: object) -> None:
        raise av.error.InvalidDataError(1094995529, "Invalid data")

    def abort(self) -> None:
        raise RuntimeError("nothing to remove")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_recorder_whose_encoder_fails_ends_with_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr("player.recorder.FrameWriter", Broken)
    recorder = Recorder(tmp_path / "out.mp4", 16, 8)
    for index in range(20):
        recorder.push(np.zeros((8, 16, 3), np.uint8), index / FPS)
    closing = threading.Thread(target=recorder.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive(), "close() waits for a thread that has ended"
    assert recorder.error.startswith("InvalidDataError: ") and "\n" not in recorder.error


def test_recorder_on_a_disk_that_does_not_answer_is_left(monkeypatch, tmp_path):
    answered = threading.Event()

    class Stuck(Broken):
        def push(self, frame: object) -> None:
            answered.wait(20)

        def abort(self) -> None:
            pass

        close = abort

    monkeypatch.setattr("player.recorder.FrameWriter", Stuck)
    monkeypatch.setattr("player.recorder._END_S", 0.3)
    recorder = Recorder(tmp_path / "out.mp4", 16, 8)
    for index in range(20):  # more than wait
        recorder.push(np.zeros((8, 16, 3), np.uint8), index / FPS)
    recorder.close()
    answered.set()
    recorder._thread.join(20)
    assert "does not answer" in recorder.error and recorder.dropped > 0


def test_padding_of_odd_sizes_is_cut():
    frame = grey(7, 0, 16, 8)
    assert cut_to(frame, 16, 8) is frame
    cut = cut_to(frame, 15, 7)
    assert cut.rgb.shape == (7, 15, 3) and cut.rgb.flags["C_CONTIGUOUS"] and np.all(cut.rgb == 7)
    assert cut.pts == frame.pts
