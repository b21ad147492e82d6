"""H.264, H.265 and AV1 behind push and flush: every frame back at its time, honest rates, searches, damage."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from mcode import baseline
from mcode.baseline import (
    CODERS,
    BaselineDecoder,
    BaselineEncoder,
    CrfFollower,
    CrfSearch,
    EncodedPacket,
    Encoding,
    coder_named,
    find_crf,
    live_encoder,
)
from mcode.errors import InputError
from mcode.evaluation.metrics import psnr
from mcode.frame import Frame
from mcode.testclip import render_frames

FRAMES = list(render_frames("arms", 0.4, 25, (64, 48), 1))
each_codec = pytest.mark.parametrize("codec", CODERS)


@pytest.fixture(scope="module")
def searches() -> dict[str, CrfSearch]:
    return {codec: CrfSearch(FRAMES, codec) for codec in CODERS}


def of_size(width: int, height: int, count: int = 3) -> list[Frame]:
    """A picture with a bright left half, a little brighter from frame to frame."""
    frames = []
    for i in range(count):
        rgb = np.full((height, width, 3), 40 + 10 * i, np.uint8)
        rgb[:, : width // 2] += 100
        frames.append(Frame(rgb, i * 3600))
    return frames


@each_codec
def test_every_frame_comes_back_in_order_at_its_time(codec):
    frames = of_size(64, 48, 10)  # each brighter by 10 than the one before
    decoded = list(CrfSearch(frames, codec).at_crf(20).decode())
    assert [frame.pts for frame in decoded] == [frame.pts for frame in frames]
    for before, after in zip(frames, decoded, strict=True):
        assert np.abs(after.rgb.astype(int) - before.rgb).mean() < 4


@each_codec
def test_uneven_times_are_kept(codec):
    times = [0, 3000, 3001, 9000, 40_000]
    frames = [Frame(frame.rgb, pts) for frame, pts in zip(FRAMES, times, strict=False)]
    assert [frame.pts for frame in CrfSearch(frames, codec).at_crf(40).decode()] == times


@each_codec
@pytest.mark.parametrize("size", [(65, 49), (33, 36), (64, 35)])
def test_odd_sizes_come_back_at_their_size(codec, size):
    frames = of_size(*size)
    decoded = list(CrfSearch(frames, codec).at_crf(20).decode())
    assert len(decoded) == 3
    for before, after in zip(frames, decoded, strict=True):
        assert after.rgb.shape == before.rgb.shape
        assert np.abs(after.rgb.astype(int) - before.rgb).mean() < 4


def test_narrow_pictures_do_not_corrupt_memory_in_x265():
    code = (
        "import numpy as np; from mcode.baseline import *; from mcode.frame import Frame\n"
        "for w, h in ((34, 34), (18, 18), (48, 64)) * 3:\n"
        "    noise = [np.random.default_rng(i).integers(0, 255, (h, w, 3), np.uint8) for i in range(3)]\n"
        "    frames = [Frame(rgb, i * 3600) for i, rgb in enumerate(noise)]\n"
        "    assert len(list(CrfSearch(frames, 'h265').at_crf(20).decode())) == 3\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def slices_of(codec: str, packet: EncodedPacket) -> int:
    """VCL NAL units of an access unit in Annex B."""
    heads = [unit[0] for unit in packet.data.split(b"\0\0\1")[1:]]
    return sum(head & 31 in (1, 5) if codec == "h264" else head >> 1 < 32 for head in heads)


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("options", [None, {"threads": "0"}, {"threads": "3"}, {"tune": "zerolatency"}])
def test_each_picture_is_one_slice(codec, options):
    encoder = BaselineEncoder(codec, 320, 192, crf=35, options=options)
    packets = [packet for frame in of_size(320, 192) for packet in encoder.push(frame)] + encoder.flush()
    assert [slices_of(codec, packet) for packet in packets] == [1, 1, 1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot choose cores")
def test_packets_do_not_depend_on_the_number_of_cores():
    code = (
        "import hashlib, os, sys; from mcode.baseline import *; from mcode.testclip import render_frames\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])\n"
        "for codec in CODERS:\n"
        "    encoder = BaselineEncoder(codec, 320, 192, crf=35)\n"
        "    packets = [p for f in render_frames('arms', 0.4, 25, (320, 192), 1) for p in encoder.push(f)] + encoder.flush()\n"
        "    print(codec, hashlib.sha256(b''.join(p.data for p in packets)).hexdigest())\n"
    )
    runs = [subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True, text=True) for n in (1, 64)]
    assert runs[0].stdout == runs[1].stdout and runs[0].stdout.count("\n") == 3, runs[0].stderr


def test_x265_saves_the_bits_of_wavefronts_and_pools():
    def size(options):
        encoder = BaselineEncoder("h265", 640, 360, crf=35, options=options)
        frames = render_frames("arms", 0.4, 25, (640, 360), 1)
        return sum(len(packet.data) for frame in frames for packet in encoder.push(frame)) + sum(
            len(packet.data) for packet in encoder.flush()
        )

    assert size(None) < size({"x265-params": "wpp=1:pools=4"})
    assert size(None) != size({"x265-params": "pools=4"})  # by which four cores would be seen


@each_codec
def test_rate_counts_every_byte_of_every_packet(codec, searches):
    encoding = searches[codec].at_crf(30)
    total = sum(len(packet.data) for packet in encoding.packets)
    assert encoding.payload_bytes == total > 0
    assert encoding.duration_s == pytest.approx(0.4)
    assert encoding.rate_kbps == pytest.approx(total * 8 / 0.4 / 1000)
    assert encoding.packets[0].keyframe
    encoder = BaselineEncoder(codec, 64, 48, crf=30)
    packets = [packet for frame in FRAMES for packet in encoder.push(frame)] + encoder.flush()
    assert encoder.payload_bytes == sum(len(packet.data) for packet in packets)


def test_stated_psnr_is_the_mean_over_frames(searches):
    encoding = searches["h264"].at_crf(30)
    errors = [np.square(a.rgb.astype(float) - b.rgb).mean() for a, b in zip(FRAMES, encoding.decode(), strict=True)]
    assert encoding.psnr_db == pytest.approx(np.mean([10 * math.log10(255**2 / error) for error in errors]))


def test_x264s_text_about_itself_is_neither_kept_nor_counted(searches):
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt, context.framerate = 64, 48, "yuv420p", 25
    context.time_base = Fraction(1, 25)
    picture = av.VideoFrame.from_ndarray(FRAMES[0].rgb, format="rgb24").reformat(format="yuv420p")
    raw = b"".join(bytes(packet) for packet in [*context.encode(picture), *context.encode(None)])
    assert b"x264 - core" in raw  # else the encoder has stopped writing it, and this test is of nothing
    encoding = searches["h264"].at_crf(30)
    assert all(b"x264" not in packet.data for packet in encoding.packets)
    kinds = [unit[0] & 31 for unit in encoding.packets[0].data.split(b"\0\0\1")[1:]]
    assert {7, 8, 5} <= set(kinds) and 6 not in kinds


def test_av1s_temporal_delimiters_are_neither_kept_nor_counted(searches):
    """As in a file of it: its samples have as many bytes, and play."""
    encoding, file = searches["av1"].at_crf(30), io.BytesIO()
    assert all(packet.data[0] >> 3 & 15 != 2 for packet in encoding.packets)
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libsvtav1", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, 90_000)
        for packet in encoding.packets:
            sample = av.Packet(packet.data)
            sample.pts, sample.dts, sample.time_base, sample.stream = packet.pts, packet.dts, Fraction(1, 90_000), stream
            sample.is_keyframe = packet.keyframe
            out.mux(sample)
    file.seek(0)
    with av.open(file) as made:
        samples = [packet.size for packet in made.demux(video=0)]
        made.seek(0)
        assert len(list(made.decode(video=0))) == len(FRAMES)
    assert sum(samples) == encoding.payload_bytes


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_reachable_rate_is_met(codec, searches):
    encoding = searches[codec].at_rate(40, tolerance=0.05)
    assert encoding.rate_kbps == pytest.approx(40, rel=0.05)
    assert not encoding.at_floor


def test_av1_comes_as_near_to_a_rate_as_quarter_steps_allow(searches):
    search = searches["av1"]
    wanted = search.at_crf(45.25).rate_kbps
    found = search.at_rate(wanted)
    assert found.crf * 4 == round(found.crf * 4)
    assert found.rate_kbps == pytest.approx(wanted, rel=0.02)


def test_av1_goes_below_the_last_crf_of_ffmpegs_interface():
    frames = list(render_frames("face", 1.0, 25, (128, 96), 1))
    search = CrfSearch(frames, "av1")
    floor, quarter = search.at_crf(CODERS["av1"].crf_floor), search.at_crf(62.75)
    assert floor.crf == 70 and floor.rate_kbps < 0.95 * search.at_crf(63).rate_kbps
    assert search.at_crf(63).packets != quarter.packets != search.at_crf(62.5).packets
    assert search.at_psnr(floor.psnr_db - 1).at_floor


def test_an_older_av1_encoder_is_asked_for_whole_crfs_up_to_63(monkeypatch):
    monkeypatch.setattr(baseline, "_crf_to_70", lambda: False)
    tried = []
    assert find_crf("av1", lambda crf: tried.append(crf) or -crf, -44.6, 0.01) in (44, 45)
    assert tried[0] == 63 and tried == [round(crf) for crf in tried]
    assert CrfSearch(FRAMES, "av1").at_rate(0.2).crf == 63


def test_a_crf_that_av1_does_not_know_is_refused():
    with pytest.raises(InputError, match="AV1 cannot encode"):  # not passed over, as FFmpeg would
        BaselineEncoder("av1", 64, 48, crf=70.5)


@each_codec
def test_an_unreachably_low_rate_or_psnr_gives_the_floor_and_says_so(codec, searches):
    for found in (searches[codec].at_rate(0.2), searches[codec].at_psnr(5)):
        assert found.at_floor and "its floor" in repr(found)
        assert found.crf == CODERS[codec].crf_floor
        assert found.rate_kbps > 0.2 and found.psnr_db > 5
    # the flag belongs to the wish, not to the encoding
    assert not searches[codec].at_crf(CODERS[codec].crf_floor).at_floor


def test_the_floor_itself_is_no_miss(searches):
    floor = searches["h264"].at_crf(51)
    assert not searches["h264"].at_rate(floor.rate_kbps).at_floor


def test_an_unreachably_high_wish_gives_the_best_there_is(searches):
    best = searches["h264"].at_psnr(99)
    assert best.crf == 1 and not best.at_floor


def test_a_reachable_psnr_is_met(searches):
    found = searches["h264"].at_psnr(26.0, tolerance_db=0.3)
    assert found.psnr_db == pytest.approx(26.0, abs=0.3)


def test_more_bits_give_more_psnr_and_each_crf_is_encoded_once():
    told = []
    search = CrfSearch(FRAMES, "h264", progress=lambda done, total: told.append((done, total)))
    for crf in (20, 40, 30, 30, 20):
        search.at_crf(crf)
    assert [e.crf for e in search.encodings] == [40, 30, 20]
    assert [e.psnr_db for e in search.encodings] == sorted(e.psnr_db for e in search.encodings)
    assert told == [(i, len(FRAMES)) for i in range(1, len(FRAMES) + 1)] * 3


def test_a_clip_may_be_a_function_that_opens_it_anew():
    encoding = CrfSearch(lambda: iter(FRAMES), "h264").at_crf(35)
    assert isinstance(encoding, Encoding) and encoding.frames == len(FRAMES)
    with pytest.raises(InputError, match="no frames"):
        CrfSearch([], "h264").at_crf(35)


def test_one_picture_lasts_a_25th_of_a_second():
    assert CrfSearch(FRAMES[:1], "h264").at_crf(30).duration_s == pytest.approx(0.04)


def test_rates_are_over_the_length_that_is_told():
    even, told = CrfSearch(FRAMES, "h264").at_crf(35), CrfSearch(FRAMES, "h264", duration_s=4.0).at_crf(35)
    assert even.duration_s == pytest.approx(0.4) and told.duration_s == 4.0
    assert told.packets == even.packets and told.rate_kbps == pytest.approx(even.rate_kbps / 10)
    search = CrfSearch(FRAMES, "h264", duration_s=4.0)
    assert search.at_rate(even.rate_kbps / 10).payload_bytes == pytest.approx(even.payload_bytes, rel=0.02)


def damaged(data: bytes, rng: np.random.Generator, kind: int) -> bytes:
    if kind == 0:
        return data[: int(rng.integers(0, len(data) + 1))]
    if kind == 1:
        return rng.bytes(int(rng.integers(1, 200)))
    hit = bytearray(data)
    for place in rng.integers(0, min(len(hit), 40) if kind == 2 else len(hit), 3):
        hit[place] ^= 1 << int(rng.integers(8))
    return bytes(hit)


@each_codec
def test_damage_gives_frames_of_the_right_size_or_none_and_never_raises(codec, searches):
    packets = searches[codec].at_crf(30).packets
    hurt = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        decoder = BaselineDecoder(codec, 64, 48)
        frames = []
        for packet in packets:
            frames += decoder.push(replace(packet, data=damaged(packet.data, rng, seed % 4)))
        frames += decoder.flush()
        assert all(frame.rgb.shape == (48, 64, 3) for frame in frames)
        hurt += decoder.damaged_packets
    assert hurt > 0


@each_codec
def test_a_stream_of_another_size_gives_no_frames_of_this_one(codec, searches):
    decoder = BaselineDecoder(codec, 128, 96)
    packets = searches[codec].at_crf(30).packets
    frames = [frame for packet in packets for frame in decoder.push(packet)] + decoder.flush()
    assert frames == [] and decoder.damaged_packets == len(FRAMES)


@each_codec
def test_a_lost_first_packet_does_not_raise(codec, searches):
    decoder = BaselineDecoder(codec, 64, 48)
    for packet in searches[codec].at_crf(30).packets[1:]:
        decoder.push(packet)
    decoder.flush()
    decoder = BaselineDecoder(codec, 64, 48)
    assert decoder.push(EncodedPacket(b"nothing of the kind", 0, 0, True)) + decoder.flush() == []


@pytest.mark.parametrize("make", [coder_named, lambda c: CrfSearch(FRAMES, c), lambda c: BaselineDecoder(c, 64, 48)])
def test_an_unknown_codec_is_named_in_one_line(make):
    with pytest.raises(InputError, match="'vp9'.*h264, h265, av1") as error:
        make("vp9")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("codec", "size"), [("av1", (31, 64)), ("av1", (64, 16)), ("h265", (8, 8))])
def test_a_picture_too_small_for_the_codec_is_refused_in_one_line(codec, size):
    with pytest.raises(InputError, match=f"{CODERS[codec].label} cannot encode {size[0]}x{size[1]}") as error:
        BaselineEncoder(codec, *size, crf=30)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("codec", "size"), [("av1", (64, 8706)), ("av1", (16386, 64)), ("h264", (64, 16386))])
def test_a_picture_too_large_for_the_codec_is_refused_in_one_line(codec, size):
    words = f"{CODERS[codec].label} cannot encode {size[0]}x{size[1]}: 16384 pixels wide and .* high at most"
    with pytest.raises(InputError, match=words):
        BaselineEncoder(codec, *size, crf=30)


@each_codec
@pytest.mark.parametrize("gap", [1, 90, 90_000 * 3600])
def test_very_fast_and_very_slow_clips_keep_their_times(codec, gap):
    """SVT-AV1 itself takes 240 frames/s at most, and no less than one in 2000 s."""
    frames = [Frame(frame.rgb, i * gap) for i, frame in enumerate(FRAMES)]
    encoding = CrfSearch(frames, codec).at_crf(40)
    assert [frame.pts for frame in encoding.decode()] == [frame.pts for frame in frames]
    assert encoding.duration_s == pytest.approx(len(FRAMES) * gap / 90_000)


def test_misuse_raises_at_once():
    with pytest.raises(ValueError, match="either crf or rate_kbps"):
        BaselineEncoder("h264", 64, 48)
    with pytest.raises(ValueError, match="either crf or rate_kbps"):
        BaselineEncoder("h264", 64, 48, crf=30, rate_kbps=30)
    with pytest.raises(ValueError, match="frame is 64x48, encoder is 32x32"):
        BaselineEncoder("h264", 32, 32, crf=30).push(FRAMES[0])


# Live encoders, and following a rate


def rate_of(encoder, frames) -> float:
    size = sum(len(packet.data) for frame in frames for packet in encoder.push(frame))
    return size * 8 / 1000 / (len(frames) / 25)


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_live_encoder_gives_each_picture_at_once_and_fewer_bits_at_a_higher_crf(codec):
    rates = []
    for crf in (30, 45):
        encoder = live_encoder(codec, 64, 48, crf=crf, fps=25, gop_s=1.0)
        assert all(len(encoder.push(frame)) == 1 for frame in FRAMES)
        rates.append(rate_of(live_encoder(codec, 64, 48, crf=crf, fps=25, gop_s=1.0), FRAMES))
    assert rates[1] < 0.6 * rates[0]


def test_a_live_encoder_wants_a_crf_or_a_rate():
    with pytest.raises(ValueError, match="crf or rate_kbps"):
        live_encoder("h264", 64, 48, fps=25, gop_s=1.0)
    with pytest.raises(ValueError, match="crf or rate_kbps"):
        live_encoder("h264", 64, 48, crf=30, rate_kbps=9, fps=25, gop_s=1.0)


def test_by_crf_a_live_encoder_is_better_than_by_average_rate_at_that_rate():
    frames = list(render_frames("face", 2.0, 25, (128, 96), 1))

    def quality(**rate):
        encoder, decoder, size, scores = (
            live_encoder("h264", 128, 96, fps=25, gop_s=5.0, **rate),
            BaselineDecoder("h264"),
            0,
            [],
        )
        for frame in frames:
            for packet in encoder.push(frame):
                size += len(packet.data)
                scores += [psnr(frame.rgb, decoded.rgb) for decoded in decoder.push(packet)]
        return size * 8 / 1000 / 2, sum(scores) / len(scores)

    kbps, by_crf = quality(crf=42)
    _, by_rate = quality(rate_kbps=kbps)
    assert by_crf > by_rate - 0.1


@pytest.mark.parametrize("wanted", [20.0, 35.5, 48.0])
def test_the_search_finds_the_crf_of_a_known_curve(wanted):
    tried = []

    def value(crf):
        tried.append(crf)
        return math.log(1000) - math.log(2) * crf / 6 - 0.001 * crf * crf

    assert find_crf("h264", value, value(wanted), 0.01) == pytest.approx(wanted, abs=0.25)
    assert len(tried) < 9


def test_the_search_goes_on_where_a_lower_crf_gives_less():
    """As x264 and x265 do near their floors, in small clips."""
    values = {51: 18.65, 49.75: 18.63}

    def value(crf):
        return values.get(crf, 18.65 + 0.3 * (51 - crf))

    assert find_crf("h265", value, 19.17, 0.05, rise_per_halving=3.0) == pytest.approx(49.25)


def test_the_search_ends_at_the_floor_and_at_the_best():
    assert find_crf("h264", lambda crf: -crf, -60.0, 0.1) == 51
    assert find_crf("av1", lambda crf: -crf, -90.0, 0.1) == 70
    assert find_crf("h264", lambda crf: -crf, 20.0, 0.1) == 1


def follow(follower, target_kbps, kbps_at, seconds):
    """Rates of a made-up encoder, second by second, whose rate halves every six steps of CRF."""
    sent, rates = 0.0, []
    for frame in range(seconds * 25):
        crf = follower.look(frame / 25, round(sent), target_kbps)
        rate = kbps_at(crf)
        sent += rate * 1000 / 8 / 25
        rates.append(rate)
    return rates[::25]


def test_a_follower_comes_to_the_rate_it_follows_and_stays():
    follower = CrfFollower("h264", period_s=2.0)
    rates = follow(follower, 40.0, lambda crf: 400 * 2 ** (-crf / 6), 40)
    assert rates[-1] == pytest.approx(40, rel=0.13) and len(set(rates[-20:])) == 1
    assert not follower.at_floor


def test_a_follower_says_that_it_is_at_the_floor():
    follower = CrfFollower("h264", period_s=2.0)
    rates = follow(follower, 1.0, lambda crf: 400 * 2 ** (-crf / 6), 40)
    assert follower.crf == 51 and follower.at_floor and rates[-1] > 1.0
    follow(follower, 1.0, lambda crf: 0.5, 1)
    assert follower.at_floor  # until the next look


def test_a_follower_waits_for_something_to_follow():
    follower = CrfFollower("h264")
    assert {follower.look(t, 1000 * t, None) for t in range(30)} == {44.0}
