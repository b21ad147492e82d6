"""The channel: how much it damages, that it does so alike for both lanes, and that sliders move one thing each."""

from __future__ import annotations

import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcode.channel import Channel, ChannelSettings
from mcode.errors import InputError


def losses(channel, count, size=10):
    return [not channel.transmit(bytes(size)) for _ in range(count)]


def flips(data):
    return np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8))).tolist()


def runs(lost):
    edges = np.flatnonzero(np.diff(np.r_[0, np.array(lost, int), 0]))
    return edges[1::2] - edges[::2]


def test_a_clean_channel_gives_back_the_same_bytes_at_once():
    channel = Channel()
    assert channel.transmit(b"abc", 0, 5.0) == [(5.0, b"abc")]
    assert (channel.sent, channel.lost, channel.damaged, channel.flipped_bits) == (1, 0, 0, 0)


@pytest.mark.parametrize("rate", [1e-5, 1e-3, 0.05, 0.5])
def test_bits_are_flipped_at_the_rate_asked(rate):
    channel = Channel(ChannelSettings(bit_error_rate=rate, seed=1))
    size = 200_000 if rate < 1e-4 else 2000
    found = [len(flips(channel.transmit(bytes(size))[0][1])) for _ in range(20)]
    expected = 20 * size * 8 * rate
    assert abs(sum(found) - expected) < 5 * expected**0.5
    assert channel.flipped_bits == sum(found) and channel.damaged == sum(n > 0 for n in found)


def test_gaps_between_bit_errors_are_geometric_across_packets():
    channel = Channel(ChannelSettings(bit_error_rate=0.05, seed=3))
    stream = b"".join(channel.transmit(bytes(7))[0][1] for _ in range(20_000))
    gaps = np.diff(flips(stream))
    assert gaps.mean() == pytest.approx(20, rel=0.03)
    assert np.mean(gaps == 1) == pytest.approx(0.05, rel=0.1)


def test_settings_replaced_while_a_packet_is_on_its_way_count_from_the_next_one():
    class Slider(Channel):
        def _flip(self, *arguments):
            self.settings = ChannelSettings()  # as the window's thread may
            return super()._flip(*arguments)

    channel = Slider(ChannelSettings(bit_error_rate=0.1))
    assert flips(channel.transmit(bytes(1000))[0][1])
    assert not flips(channel.transmit(bytes(1000))[0][1])


def test_protected_bytes_are_spared():
    channel = Channel(ChannelSettings(bit_error_rate=0.5))
    for size in (0, 3, 4, 5, 40):
        received = channel.transmit(bytes(size), 4)[0][1]
        assert len(received) == size and not any(received[:4])


@pytest.mark.parametrize("loss", [0.02, 0.2, 0.5, 0.9])
def test_independent_losses_at_the_rate_asked(loss):
    lost = losses(Channel(ChannelSettings(loss=loss, seed=2)), 20_000)
    assert np.mean(lost) == pytest.approx(loss, abs=0.012)
    assert runs(lost).mean() == pytest.approx(1 / (1 - loss), rel=0.06)


@pytest.mark.parametrize("burst", [3.0, 10.0])
def test_bursts_have_the_length_asked_and_keep_the_loss(burst):
    lost = losses(Channel(ChannelSettings(loss=0.1, burst=burst, seed=4)), 100_000)
    assert np.mean(lost) == pytest.approx(0.1, rel=0.15)
    assert runs(lost).mean() == pytest.approx(burst, rel=0.1)


def test_all_or_nothing():
    assert all(losses(Channel(ChannelSettings(loss=1.0)), 50))
    assert not any(losses(Channel(ChannelSettings(loss=0.0)), 50))


def test_same_seed_same_damage_in_both_lanes_whatever_they_carry():
    settings = ChannelSettings(loss=0.3, bit_error_rate=0.01, seed=9)
    a, b = Channel(settings), Channel(settings)
    assert losses(a, 200) == losses(b, 200, size=500)
    settings = replace(settings, loss=0)
    a, b = Channel(settings), Channel(settings)
    short = b"".join(a.transmit(bytes(30))[0][1] for _ in range(40))
    long = b"".join(b.transmit(bytes(16) + bytes(1200), 16)[0][1][16:] for _ in range(1))
    assert flips(short) == flips(long)


def test_a_packet_all_of_header_does_not_move_the_pattern():
    a, b = (Channel(ChannelSettings(bit_error_rate=0.01, seed=9)) for _ in range(2))
    assert a.transmit(bytes(2), 30)[0][1] == bytes(2)
    assert flips(a.transmit(bytes(500))[0][1]) == flips(b.transmit(bytes(500))[0][1]) != []


def test_another_seed_other_damage_and_the_same_seed_again_starts_anew():
    channel = Channel(ChannelSettings(loss=0.5, seed=1))
    first = losses(channel, 100)
    assert losses(Channel(ChannelSettings(loss=0.5, seed=2)), 100) != first
    channel.settings = replace(channel.settings, seed=2)
    channel.settings = replace(channel.settings, seed=1)
    assert losses(channel, 100) == first


def test_one_slider_does_not_move_the_others_pattern():
    plain = losses(Channel(ChannelSettings(loss=0.3)), 100)
    assert losses(Channel(ChannelSettings(loss=0.3, bit_error_rate=0.1, jitter_ms=9)), 100) == plain


def test_settings_change_while_packets_flow():
    channel = Channel(ChannelSettings(bit_error_rate=1e-9))
    assert flips(channel.transmit(bytes(1000))[0][1]) == []
    channel.settings = ChannelSettings(bit_error_rate=0.1)
    assert len(flips(channel.transmit(bytes(1000))[0][1])) == pytest.approx(800, abs=140)
    channel.settings = ChannelSettings(loss=1.0)
    assert channel.transmit(bytes(10)) == []
    channel.settings = ChannelSettings()
    assert channel.transmit(b"x") == [(0.0, b"x")]


def test_delay_and_jitter():
    channel = Channel(ChannelSettings(delay_ms=100, jitter_ms=50))
    times = [channel.transmit(b"x", 0, 1.0)[0][0] for _ in range(500)]
    assert 1.1 <= min(times) < 1.105 and 1.145 < max(times) <= 1.15


def test_what_arrives_is_as_late_whatever_else_is_lost():
    whole, lossy = (Channel(ChannelSettings(loss=loss, jitter_ms=50)) for loss in (0.0, 0.3))
    times = [(whole.transmit(b"x"), lossy.transmit(b"x")) for _ in range(100)]
    arrived = [(a, b) for a, b in times if b]
    assert 50 < len(arrived) < 90 and all(a == b for a, b in arrived)


@pytest.mark.parametrize(
    "bad",
    [{"bit_error_rate": 0.6}, {"loss": -0.1}, {"loss": 1.1}, {"burst": 0.5}, {"delay_ms": -1}, {"loss": float("nan")}],
)
def test_settings_outside_their_limits_are_named(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        ChannelSettings(**bad)


# mcode evaluate channel


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    from mcode.evaluation.channel import evaluate_channel
    from mcode.send import test_picture
    from mcode.video import FrameWriter

    from .block_means import TICKS, BlockMeans, Frame

    folder = tmp_path_factory.mktemp("evaluation")
    with FrameWriter(folder / "clip.mkv", width=64, height=48) as writer:
        for index in range(32):
            writer.push(Frame(test_picture(index, 64, 48), index * TICKS))
    options = {"bit_error_rates": (0.0, 1e-3, 3e-2), "losses": (0.1, 0.5), "seeds": 2, "n": 2, "refresh_s": 0.5}
    return evaluate_channel(folder / "clip.mkv", folder / "out", manifold=BlockMeans(), **options)


def test_more_damage_is_less_quality_and_every_lane_has_every_condition(report):
    by = {(row.lane, row.bit_error_rate, row.loss): row for row in report.rows}
    assert len(by) == 4 * 5 and {lane for lane, *_ in by} == {"fixed", "huffman", "h264", "h265"}
    for lane in ("fixed", "huffman", "h264"):
        assert by[lane, 0, 0].drop_db == 0 and by[lane, 0, 0].shown > 0.9
        assert by[lane, 3e-2, 0].psnr_db < by[lane, 0, 0].psnr_db
    assert by["fixed", 3e-2, 0].drop_db < by["h264", 3e-2, 0].drop_db


def test_the_baselines_get_the_rate_of_the_dearer_mcode_lane_or_say_their_floor(report):
    rates = {rate.lane: rate for rate in report.rates}
    wanted = max(rates["fixed"].rate_kbps, rates["huffman"].rate_kbps)
    for codec in ("h264", "h265"):
        if rates[codec].at_floor:
            assert rates[codec].crf == 51 and rates[codec].rate_kbps > wanted
        else:
            assert rates[codec].rate_kbps == pytest.approx(wanted, rel=0.05)
    assert rates["fixed"].crf is None


def test_a_baseline_meets_a_rate_it_can_reach_and_names_its_floor_where_it_cannot():
    from mcode.evaluation.channel import _baseline_at, _sent
    from mcode.send import test_picture

    from .block_means import TICKS, Frame

    frames, length_s = [Frame(test_picture(index, 64, 48), index * TICKS) for index in range(32)], 32 * TICKS / 90_000
    for codec in ("h264", "h265"):
        reachable = _baseline_at(codec, frames, length_s, 60.0, 5.0)
        assert not reachable.at_floor and _sent(reachable, frames, length_s)[0] == pytest.approx(60, rel=0.05)
        floor = _baseline_at(codec, frames, length_s, 0.5, 5.0)
        assert floor.at_floor and floor.crf == 51 and _sent(floor, frames, length_s)[0] > 0.5


def test_table_plot_and_pictures_are_written(report):
    import cv2

    paths = dict(zip(("json", "md", "png", "pictures"), report.files, strict=True))
    with open(paths["json"]) as file:
        assert len(json.load(file)["rows"]) == 20
    with open(paths["md"]) as file:
        text = file.read()
        assert "| bit errors 0.03 |" in text and "H.264: " in text and "CRF" in text
    assert cv2.imread(paths["png"]).shape[0] > 400
    sheet = cv2.imread(paths["pictures"])
    assert sheet.shape[0] > 4 * 150 and sheet.shape[1] > 3 * 200


def test_a_clip_whose_name_is_no_utf_8_gets_a_report(report, tmp_path):
    from mcode.evaluation.channel import _write

    odd = replace(report, input=os.fsdecode(b"caf\xe9.mkv"))
    _write(odd, {}, np.zeros((report.height, report.width, 3), np.uint8), tmp_path)
    assert "caf\N{REPLACEMENT CHARACTER}.mkv" in (tmp_path / "channel.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "channel.json").read_text())["input"] == "caf\N{REPLACEMENT CHARACTER}.mkv"


def test_a_folder_where_a_file_of_the_report_would_stand_is_refused(tmp_path):
    from mcode.evaluation.channel import _prepare

    (tmp_path / "channel.md").mkdir()
    with pytest.raises(InputError, match=r"channel.md: is a folder"):
        _prepare(tmp_path, True)


def test_a_report_that_cannot_be_written_leaves_the_one_before_whole(report, tmp_path, monkeypatch):
    from mcode.evaluation.channel import _write

    picture = np.zeros((report.height, report.width, 3), np.uint8)
    written = _write(report, {}, picture, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"channel.json", "channel.md", "channel.png", "pictures.png"}
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write_bytes(path, content[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        _write(replace(written, seeds=9), {}, picture, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_range_is_a_lane_where_the_manifold_has_a_hyperprior(tmp_path):
    from mcode.errors import InputError
    from mcode.evaluation.channel import evaluate_channel
    from mcode.send import test_picture
    from mcode.video import FrameWriter

    from .block_means import TICKS, BlockMeans, Frame
    from .test_range import WithHyper

    clip = tmp_path / "clip.mkv"
    with FrameWriter(clip, width=64, height=48) as writer:
        for index in range(32):
            writer.push(Frame(test_picture(index, 64, 48), index * TICKS))
    options = {"bit_error_rates": (0.0, 1e-3), "losses": (0.3,), "seeds": 2, "n": 2, "refresh_s": 0.5}
    report = evaluate_channel(clip, manifold=WithHyper(), lanes=("huffman", "range"), **options)
    by = {(row.lane, row.bit_error_rate, row.loss): row for row in report.rows}
    assert by["range", 0, 0].psnr_db == pytest.approx(by["huffman", 0, 0].psnr_db)  # the same symbols
    for damage in ((1e-3, 0), (0, 0.3)):
        # Damaged slices keep the picture before: worse than without damage, and far from noise.
        assert by["huffman", 0, 0].psnr_db > by["range", *damage].psnr_db > 10
    assert {rate.lane for rate in report.rates} == {"huffman", "range"}
    with pytest.raises(InputError, match="has no hyperprior; its coders are huffman and fixed"):
        evaluate_channel(clip, manifold=BlockMeans(), lanes=("range",), **options)


def test_adaptive_keyframes_are_sent_where_frames_are_off_the_line(tmp_path):
    from mcode.evaluation.channel import evaluate_channel, table
    from mcode.send import test_picture
    from mcode.video import FrameWriter

    from .block_means import TICKS, BlockMeans, Frame

    with FrameWriter(tmp_path / "clip.mkv", width=64, height=48) as writer:
        for index in range(24):
            writer.push(Frame(test_picture(index, 64, 48), index * TICKS))
    options = {"lanes": ("fixed",), "bit_error_rates": (0.0,), "losses": (), "seeds": 1, "n": 8}
    plain = evaluate_channel(tmp_path / "clip.mkv", manifold=BlockMeans(), **options)
    adaptive = evaluate_channel(tmp_path / "clip.mkv", manifold=BlockMeans(), adaptive=True, **options)
    assert adaptive.adaptive and adaptive.rates[0].rate_kbps > plain.rates[0].rate_kbps
    assert adaptive.rows[0].psnr_db > plain.rows[0].psnr_db + 1
    assert "N = 8 or less, " in table(adaptive) and "N = 8, " in table(plain)


def test_bundles_take_fewer_packets_show_the_same_and_are_lost_together(tmp_path):
    from mcode.evaluation.channel import evaluate_channel, table
    from mcode.send import test_picture
    from mcode.video import FrameWriter

    from .block_means import TICKS, BlockMeans, Frame

    with FrameWriter(tmp_path / "clip.mkv", width=32, height=24) as writer:
        for index in range(60):
            writer.push(Frame(test_picture(index, 32, 24), index * TICKS))
    options = {"lanes": ("fixed",), "bit_error_rates": (0.0,), "losses": (0.3,), "seeds": 4, "n": 2}
    alone = evaluate_channel(tmp_path / "clip.mkv", manifold=BlockMeans(), **options)
    together = evaluate_channel(tmp_path / "clip.mkv", manifold=BlockMeans(), bundle=5, **options)
    assert "N = 2, 5 keyframes to a packet, " in table(together) and "N = 2, " in table(alone)
    assert together.bundle == 5 and together.rates[0].rate_kbps < alone.rates[0].rate_kbps
    assert 2 * together.rates[0].packets < alone.rates[0].packets
    (clean, lossy), (clean_together, lossy_together) = alone.rows, together.rows
    assert clean_together.psnr_db == clean.psnr_db
    assert lossy_together.psnr_db < lossy.psnr_db < clean.psnr_db


def test_exposed_headers_are_hit_too_and_cost_frames(tmp_path):
    from mcode.evaluation.channel import evaluate_channel
    from mcode.send import test_picture
    from mcode.video import FrameWriter

    from .block_means import TICKS, BlockMeans, Frame

    clip = tmp_path / "clip.mkv"
    with FrameWriter(clip, width=64, height=48) as writer:
        for index in range(32):
            writer.push(Frame(test_picture(index, 64, 48), index * TICKS))
    options = {"lanes": ("fixed", "h264"), "bit_error_rates": (1e-2,), "losses": (0.3,), "seeds": 2, "n": 2, "refresh_s": 0.5}
    spared, exposed = (
        evaluate_channel(clip, tmp_path / f"out{expose}", manifold=BlockMeans(), expose_headers=expose, **options)
        for expose in (False, True)
    )
    for before, row in zip(spared.rows, exposed.rows, strict=True):
        assert row.shown < before.shown if row.bit_error_rate else row == before
    assert not spared.expose_headers and exposed.expose_headers
    assert "bit errors hit the headers" in (tmp_path / "outTrue/channel.md").read_text()


def test_rates_are_over_the_time_that_the_last_picture_stands_too(tmp_path):
    from mcode.evaluation.channel import evaluate_channel
    from mcode.send import test_picture

    from .block_means import BlockMeans

    pictures = [Image.fromarray(test_picture(index, 64, 48)) for index in range(10)]
    given = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    found = []
    for name, last_ms in (("even", 100), ("slow", 5000)):
        pictures[0].save(tmp_path / f"{name}.gif", duration=[100] * 9 + [last_ms], **given)
        options = {"lanes": ("fixed", "h264"), "bit_error_rates": (), "losses": (), "seeds": 1}
        found.append(evaluate_channel(tmp_path / f"{name}.gif", manifold=BlockMeans(), **options))
    even, slow = found
    assert (even.duration_s, slow.duration_s) == (pytest.approx(1.0), pytest.approx(5.9))
    assert slow.rates[0].rate_kbps == pytest.approx(even.rates[0].rate_kbps / 5.9)
    assert slow.rates[1].crf == even.rates[1].crf  # the same bits


def test_of_a_long_clip_the_first_part_is_measured_and_a_warning_says_so(tmp_path, monkeypatch):
    from mcode.evaluation import channel
    from mcode.send import test_picture
    from mcode.video import FrameWriter

    from .block_means import TICKS, BlockMeans, Frame

    monkeypatch.setattr(channel, "LONGEST_S", 0.4)
    with FrameWriter(tmp_path / "clip.mkv", width=64, height=48) as writer:
        for index in range(32):
            writer.push(Frame(test_picture(index, 64, 48), index * TICKS))
    options = {"manifold": BlockMeans(), "lanes": ("fixed",), "bit_error_rates": (), "losses": (), "seeds": 1}
    long = channel.evaluate_channel(tmp_path / "clip.mkv", **options)
    assert (long.frames, long.duration_s) == (10, pytest.approx(0.4))
    assert long.warnings == ("measured the first 0.4 s; give --duration for more",)
    for asked in ({"duration_s": 0.6}, {"start_s": 1.0}):
        report = channel.evaluate_channel(tmp_path / "clip.mkv", **options, **asked)
        assert report.warnings == () and report.frames == (15 if "duration_s" in asked else 7)
    monkeypatch.setattr(channel, "LONGEST_S", 32 / 25)  # all of it
    exact = channel.evaluate_channel(tmp_path / "clip.mkv", **options)
    assert exact.frames == 32 and exact.warnings == ()


def test_frames_are_analysed_once_and_not_held():
    from mcode.evaluation.channel import _Remembering

    from .block_means import BlockMeans

    asked = []

    class Counting(BlockMeans):
        def analyse(self, rgb):
            asked.append(rgb.shape)
            return super().analyse(rgb)

    model = _Remembering(Counting())
    first, second = (np.full((1, 480, 640, 3), grey, np.uint8) for grey in (1, 2))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    found = [model.analyse(rgb) for rgb in (first, second, first, second)]
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert found[0] is found[2] and found[1] is found[3] and len(asked) == 2
    assert held < first.nbytes  # the latents alone are half as much


def test_a_name_with_dollars_is_drawn_as_it_is():
    from mcode.evaluation import channel

    lane = next(iter(channel.LABELS))
    rows = tuple(channel.ChannelRow(lane, rate, 0.0, 30.0, 0.9, 0.0, 30.0, 1.0) for rate in (0.0, 1e-3))
    rates = (channel.LaneRate(lane, 1.0, 1.0, 1, False),)
    report = channel.ChannelReport("cost_$_and_$.mp4", "m", "0" * 16, 4, 64, 48, 1, 1.0, 1, 1.0, 2.0, rates, rows)
    assert channel._drawn(report).startswith(b"\x89PNG")
