"""The codec, with a model computable by hand: what is a keyframe, what lies between, what damage may do."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcode import codec
from mcode.codec import Decoder, Encoder
from mcode.errors import ArgumentError, ManifoldError, WireError
from mcode.frame import Frame
from mcode.packet import Packet

from .block_means import TICKS, BlockMeans, grey

MODEL = BlockMeans()


def encode(frames, width=16, height=8, **options):
    encoder = Encoder(MODEL, width, height, **options)
    packets = [p for frame in frames for p in encoder.push(frame)]
    return packets + encoder.flush()


def decode(packets, **options):
    decoder = Decoder(MODEL)
    return [frame for packet in packets for frame in decoder.push(packet, **options)]


def levels(frames):
    return [int(frame.rgb.mean()) for frame in frames]


def ramp(count, step=2):
    return [grey(100 + step * i, i) for i in range(count)]


def test_one_packet_for_the_first_every_nth_and_the_last_frame():
    packets = encode(ramp(11), n=4)
    assert [p.pts // TICKS for p in packets] == [0, 4, 8, 10]
    assert [p.steps for p in packets] == [1, 4, 4, 2]


def test_every_frame_comes_back_in_order_with_its_time():
    frames = ramp(11)
    assert [f.pts for f in decode(encode(frames, n=4))] == [f.pts for f in frames]


def test_middle_frame_is_the_mean_of_its_keyframes():
    frames = [grey(100, 0), grey(0, 1), grey(120, 2)]
    assert levels(decode(encode(frames, n=2, cuts=False))) == [100, 110, 120]


def test_adaptive_keyframes_come_sooner_where_frames_are_off_the_line():
    straight = [100, 102, 104, 106, 108, 110, 112, 114, 116]
    bent = [100, 102, 104, 106, 108, 104, 100, 96, 92]  # turns at the fifth
    jump = [100, 100, 100, 112, 112, 112, 112, 112, 112]
    for values, at in [(straight, [0, 8]), (bent, [0, 4, 8]), (jump, [0, 2, 3, 8])]:
        frames = [grey(value, i) for i, value in enumerate(values)]
        packets = encode(frames, n=8, cuts=False, adaptive=True)
        assert [p.pts // TICKS for p in packets] == at and [p.steps for p in packets[1:]] == list(np.diff(at))
        assert levels(decode(packets)) == values
    assert [p.pts // TICKS for p in encode(frames, n=8, cuts=False)] == [0, 8]


def test_adaptive_keyframes_follow_the_times_of_frames_and_their_own_error():
    uneven = [Frame(grey(100 + at, 0).rgb, at * TICKS) for at in (0, 1, 5, 6, 20)]  # straight in time, not in number
    assert len(encode(uneven, n=8, cuts=False, adaptive=True)) == 2
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 20, (9, 8, 16, 3))  # of which blocks' means keep nothing: errors of 400, of which a turn of 3 is lost
    grain -= grain.reshape(9, 2, 4, 4, 4, 3).mean((2, 4), keepdims=True).repeat(4, 2).repeat(4, 4).reshape(grain.shape)
    turn = [100, 101, 102, 103, 103, 103, 102, 101, 100]
    frames = [Frame((value + grain[0]).round().clip(0, 255).astype(np.uint8), i * TICKS) for i, value in enumerate(turn)]
    assert len(encode(frames, n=8, cuts=False, adaptive=True)) == 2
    assert len(encode([grey(value, i) for i, value in enumerate(turn)], n=8, cuts=False, adaptive=True)) > 2


def test_adaptive_keyframes_are_measured_anew_at_cuts_and_as_time_goes_by():
    tint = np.array([0, 0, -30])  # colour that begins is sent whole, which would measure anew by itself
    grain = np.random.default_rng(0).choice([-20, 20], (8, 16, 3))
    grain[::2] = -grain[1::2]  # of which blocks' means keep nothing

    def picture(level: float, i: int, grains: float) -> Frame:
        return Frame((level + tint + grains * grain).astype(np.uint8), i * TICKS)

    card = [picture(255, i, 0) for i in range(10)]
    turn = [picture(100 + min(i, 8 - i, 3), 10 + i, 1) for i in range(9)]
    assert [p.steps for p in encode(card + turn, n=8, adaptive=True)] == [1, 8, 1, 1, 8]  # at the cut, and none at the turn
    faded = [picture(100 + min(i % 8, 8 - i % 8, 3), i, min(i, 20) / 20) for i in range(66)]
    steps = {p.pts // TICKS: p.steps for p in encode(faded, n=8, cuts=False, adaptive=True)}
    assert max(steps[at] for at in steps if at < 25) < 8 and [steps[at] for at in steps if 35 <= at < 65] == [8, 8, 8, 8]


def test_sums_over_a_line_are_the_errors_of_its_frames():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.integers(1, 9 * TICKS, 20)) + 10**12
    lumas = rng.uniform(0, 255, (20, 9, 16)).astype(np.float32)
    line = codec._Line(int(times[0]), lumas[0])
    for k in range(1, 20):
        at = ((times[1:k] - times[0]) / (times[k] - times[0]))[:, None, None]
        off = lumas[0] + at * (lumas[k] - lumas[0]) - lumas[1:k]
        assert line.error(int(times[k]), lumas[k]) == pytest.approx(float((off**2).mean((1, 2)).sum()), rel=1e-4, abs=1e-6)
        line.add(int(times[k]), lumas[k])


def test_adaptive_with_n_1_is_the_image_codec_still():
    assert [p.steps for p in encode(ramp(3, 5), n=1, adaptive=True)] == [1, 1, 1]


def noisy(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Frame(rng.integers(0, 256, (8, 16, 3)).astype(np.uint8), i * TICKS) for i in range(count)]


def kbps(packets, frames, n, extra=0):
    return sum(len(p.to_sample(n)) + extra for p in packets) * 8 / 1000 / (len(frames) / 25)


@pytest.mark.parametrize(("share", "extra"), [(0.3, 0), (0.6, 0), (0.6, 49)])
def test_a_rate_chooses_how_often_keyframes_come(share, extra):
    frames = noisy(500)
    every = kbps(encode(frames, n=1, cuts=False), frames, 1, extra)
    packets = encode(frames, n=50, cuts=False, rate_kbps=share * every, packet_bytes=extra)
    assert kbps(packets, frames, 50, extra) == pytest.approx(share * every, rel=0.05)
    assert [f.pts for f in decode(packets)] == [f.pts for f in frames]
    pace = [p.pts for p in packets][5:]
    assert max(np.diff(pace)) <= 2 * min(np.diff(pace))  # evenly, not in bursts


def test_n_is_the_most_whatever_the_rate_and_every_frame_is_the_least():
    frames = noisy(100)
    assert [p.pts for p in encode(frames, n=10, cuts=False, rate_kbps=0.01)] == [
        p.pts for p in encode(frames, n=10, cuts=False)
    ]
    assert len(encode(frames, n=10, cuts=False, rate_kbps=1e6)) == 100
    assert len(encode(frames, n=1, cuts=False, rate_kbps=0.01)) == 100


def test_what_is_saved_is_not_spent_in_a_burst_after_a_pause():
    still = [Frame(noisy(1)[0].rgb, i * TICKS) for i in range(500)]
    moving = [Frame(frame.rgb, frame.pts + 500 * TICKS) for frame in noisy(250, seed=1)]
    every = kbps(encode(moving, n=1, cuts=False), moving, 1)
    packets = encode(still + moving, n=25, cuts=False, rate_kbps=0.2 * every)
    after = [p for p in packets if p.pts >= 500 * TICKS]
    assert kbps(after, moving, 25) < 0.2 * every * 1.3  # two seconds' worth in ten


def test_with_both_adaptive_keyframes_come_where_they_are_wanted_and_paid_for():
    frames = noisy(300)
    both = encode(frames, n=50, cuts=False, adaptive=True, rate_kbps=1)
    adaptive = encode(frames, n=50, cuts=False, adaptive=True)
    assert len(both) < len(adaptive) and kbps(both, frames, 50) < 1.1
    line = ramp(60)
    assert [p.pts for p in encode(line, n=20, cuts=False, adaptive=True, rate_kbps=100)] == [
        p.pts for p in encode(line, n=20, cuts=False)
    ]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_cuts_too_take_what_a_rate_pays(every, adaptive):
    frames = [Frame(noisy(1, seed=i // every)[0].rgb // 4 + 150 * (i // every % 2), i * TICKS) for i in range(500)]
    packets = encode(frames, n=250, adaptive=adaptive, rate_kbps=1)
    assert kbps(packets, frames, 250) == pytest.approx(1, rel=0.15)


def test_a_cut_now_and_then_is_lent_its_keyframes():
    frames = [Frame(frame.rgb // 4 + 150 * (i // 100 % 2), frame.pts) for i, frame in enumerate(noisy(500))]
    packets = encode(frames, n=250, rate_kbps=1)
    assert {99, 100, 199, 200, 299, 300, 399, 400} <= {p.pts // TICKS for p in packets}
    assert kbps(packets, frames, 250) == pytest.approx(1, rel=0.15)


def test_cuts_are_kept_where_n_alone_takes_more_than_the_rate():
    frames = [Frame(frame.rgb // 4 + 150 * (i // 100 % 2), frame.pts) for i, frame in enumerate(noisy(500))]
    packets = encode(frames, n=4, rate_kbps=0.1)
    assert {99, 100, 199, 200, 299, 300, 399, 400} <= {p.pts // TICKS for p in packets}


@pytest.mark.parametrize("together", [1, 7])
def test_a_rate_is_held_by_what_keyframes_took_where_that_is_told(together):
    frames, share = noisy(500), 0.6
    every = kbps(encode(frames, n=1, cuts=False), frames, 1)
    encoder, sent, held = Encoder(MODEL, 16, 8, n=50, cuts=False, rate_kbps=share * every, packet_bytes=1), 0, []
    for frame in frames:
        held += encoder.push(frame)
        if len(held) >= together:
            sent += (took := sum(2 * len(packet.to_sample(50)) + 9 for packet in held))
            encoder.settle(took)
            held = []
    assert sent * 8 / 1000 / 20 == pytest.approx(share * every, rel=0.07)  # of two seconds a part is still owed


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ArgumentError, match="rate_kbps"):
        Encoder(MODEL, 16, 8, rate_kbps=rate)


@pytest.mark.parametrize("size", [-1, float("nan"), float("inf")])
def test_what_no_packet_takes_is_refused(size):
    with pytest.raises(ArgumentError, match="packet_bytes"):
        Encoder(MODEL, 16, 8, rate_kbps=1, packet_bytes=size)


def test_n_1_is_the_image_codec():
    packets = encode([grey(90, 0)], n=1)
    assert len(packets) == 1 and packets[0].header is not None and packets[0].steps == 1
    assert levels(decode(packets)) == [90]


@pytest.mark.parametrize("coder", ["huffman", "fixed"])
@pytest.mark.parametrize("slices", [1, 3])
def test_reconstruction_is_what_quantisation_leaves(coder, slices):
    rng = np.random.default_rng(3)
    blocks = rng.integers(20, 230, (5, 2, 4, 3))
    frames = [Frame(b.repeat(4, 0).repeat(4, 1).astype(np.uint8), i * TICKS) for i, b in enumerate(blocks)]
    decoded = decode(encode(frames, n=1, coder=coder, slices=slices))
    for before, after in zip(frames, decoded, strict=True):
        assert np.abs(before.rgb.astype(int) - after.rgb).max() <= 1


def test_sizes_that_are_no_multiple_of_the_stride_come_back():
    for width, height in ((1, 1), (17, 23), (3, 40)):
        frames = [grey(80, i, width, height) for i in range(3)]
        assert [f.rgb.shape for f in decode(encode(frames, width, height, n=2))] == [(height, width, 3)] * 3


def test_a_cut_is_not_interpolated_across():
    frames = [grey(20, i) for i in range(6)] + [grey(220, i) for i in range(6, 12)]
    packets = encode(frames, n=4)
    assert levels(decode(packets)) == [20] * 6 + [220] * 6
    assert 5 in [p.pts // TICKS for p in packets] and 6 in [p.pts // TICKS for p in packets]


@pytest.mark.parametrize(("step", "keyframes"), [(25, [0, 4]), (45, [0, 1, 2, 4])])
def test_a_cut_is_a_step_of_more_than_thirty_levels(step, keyframes):
    frames = [grey(100 + step * (i >= 2), i) for i in range(5)]
    assert [p.pts // TICKS for p in encode(frames, n=4)] == keyframes


def test_refresh_repeats_the_header_at_least_as_often_as_asked():
    packets = encode(ramp(76, step=1), n=5, refresh_s=1.0)
    refreshes = [p.pts // TICKS for p in packets if p.header]
    assert refreshes == [0, 25, 50, 75]


def test_a_refresh_asked_for_comes_once():
    encoder = Encoder(MODEL, 16, 8, n=1)
    packets = []
    for i, frame in enumerate(ramp(8)):
        if i == 3:
            encoder.request_refresh()
        packets += encoder.push(frame)
    assert [i for i, p in enumerate(packets) if p.header] == [0, 3]


def test_decoding_can_start_at_any_refresh():
    packets = encode(ramp(51, step=1), n=5, refresh_s=1.0)
    start = next(i for i, p in enumerate(packets) if p.header and i)
    assert levels(decode(packets[start:]))[-1] == levels(decode(packets))[-1]


def test_before_the_first_refresh_nothing_is_shown_and_nothing_breaks():
    packets = encode(ramp(11), n=2)
    assert decode(packets[1:]) == []


def test_uneven_times_come_back_exactly_and_even_ones_cost_nothing():
    even = encode(ramp(9), n=4)
    assert all(p.times is None for p in even)
    uneven = [replace(f, pts=f.pts + (700 if i % 2 else 0)) for i, f in enumerate(ramp(9))]
    packets = encode(uneven, n=4)
    assert [f.pts for f in decode(packets)] == [f.pts for f in uneven]


def test_uneven_times_move_the_interpolation_with_them():
    frames = [grey(100, 0), Frame(grey(0, 0).rgb, TICKS), grey(120, 4)]
    assert levels(decode(encode(frames, n=2, cuts=False))) == [100, 105, 120]


def test_lost_keyframe_is_a_longer_gap():
    packets = encode(ramp(13), n=4, coder="fixed")
    decoder = Decoder(MODEL)
    whole = [f for p in packets[:2] for f in decoder.push(p)]
    bridged = list(decoder.push(packets[3], after_loss=True))
    assert [f.pts for f in whole + bridged] == [i * TICKS for i in range(13)]
    assert levels(bridged) == [110, 112, 114, 116, 118, 120, 122, 124]


def after_a_loss(jump, pace=TICKS, steps=4):
    """Times behind a keyframe lost: two keyframes, `steps` frames apart by `pace`, then one `jump` ticks later."""
    packets = encode(ramp(13), n=4, coder="fixed")
    decoder = Decoder(MODEL)
    list(decoder.push(packets[0])), list(decoder.push(replace(packets[1], pts=4 * pace)))
    late = replace(packets[3], pts=4 * pace + jump, steps=steps)
    return [f.pts - 4 * pace for f in decoder.push(late, after_loss=True, wanted=lambda pts: True)]


def test_a_jump_of_the_clock_after_a_loss_is_a_new_start_and_not_a_filled_gap():
    assert after_a_loss((1 << 31) - 1) == [(1 << 31) - 1]
    assert after_a_loss(20 * 90_000, pace=10) == [20 * 90_000]
    assert after_a_loss(-TICKS) == [-TICKS]


def test_a_clock_that_jumps_back_shows_no_picture_that_never_was():
    packets = encode([grey(100, 4), grey(110, 5)], n=1, cuts=False)
    before, after = decode([packets[0], replace(packets[1], pts=0)])
    assert (before.pts, after.pts) == (4 * TICKS, 0) and levels([after]) == [110]


def test_a_clock_that_stands_still_is_one_frame_and_a_later_loss_is_filled_at_the_pace_before():
    packets = encode(ramp(13), n=4, coder="fixed")
    decoder = Decoder(MODEL)
    list(decoder.push(packets[0])), list(decoder.push(packets[1]))
    assert [f.pts for f in decoder.push(packets[1])] == [4 * TICKS]
    assert [f.pts for f in decoder.push(packets[3], after_loss=True)] == [i * TICKS for i in range(5, 13)]


def test_filler_after_a_loss_ends_before_the_times_a_keyframe_tells():
    packets = encode(ramp(13), n=4, coder="fixed")
    late = replace(packets[3], times=(6 * TICKS, 200, 100))
    decoder = Decoder(MODEL)
    list(decoder.push(packets[0])), list(decoder.push(packets[1]))
    told = [6 * TICKS, 12 * TICKS - 200, 12 * TICKS - 100, 12 * TICKS]
    assert [f.pts for f in decoder.push(late, after_loss=True)] == [5 * TICKS, *told]


def test_filler_after_a_loss_is_bounded_and_rises():
    times = after_a_loss(9 * 90_000, pace=1)
    assert 4 < len(times) <= 9_004 and times == sorted(set(times)) and times[-1] == 9 * 90_000


def test_times_that_reach_back_to_the_keyframe_before_are_left_out():
    first, second = encode(ramp(5), n=4)
    for times in ((4 * TICKS, 200, 100), (9 * TICKS, 2 * TICKS, TICKS)):
        assert [f.pts for f in decode([first, replace(second, times=times)])] == [i * TICKS for i in range(5)]
    inside = replace(second, times=(4 * TICKS - 1, 200, 100))
    assert [f.pts for f in decode([first, inside])] == [0, 1, 4 * TICKS - 200, 4 * TICKS - 100, 4 * TICKS]


@pytest.mark.parametrize(
    ("n", "steps", "gap", "frames"),
    [(4, 12_000, 4 * TICKS, 4), (65_535, 20, 10, 10), (65_535, 3000, 3000 * TICKS, 3000), (65_535, 3000, 3000, 3000)],
)
def test_steps_are_cut_to_what_an_encoder_makes_of_the_gap(n, steps, gap, frames):
    first, second = encode([grey(100, 0), grey(110, 1)], n=1, cuts=False)
    first = replace(first, header=replace(first.header, n=n))
    times = [f.pts for f in decode([first, replace(second, steps=steps, pts=gap)])]
    assert len(times) == 1 + frames and times == sorted(set(times)) and times[-1] == gap


@pytest.mark.parametrize(("steps", "gap", "frames"), [(12_000, 4 * TICKS, 160), (100, 4000, 64), (60, 100, 60)])
def test_many_frames_of_a_live_stream_are_a_millisecond_apart(steps, gap, frames):
    first, second = encode([grey(100, 0), grey(110, 1)], n=1, cuts=False)
    decoder = Decoder(MODEL, most_gap_pixels=1 << 29)
    list(decoder.push(replace(first, header=replace(first.header, n=65_535))))
    assert len(list(decoder.push(replace(second, steps=steps, pts=gap)))) == frames


def test_a_gap_costs_no_more_pixels_than_a_live_receiver_gives_it():
    packets = [replace(p, header=replace(p.header, n=9000)) if p.header else p for p in encode(ramp(13), n=4, coder="fixed")]
    decoder = Decoder(MODEL, most_gap_pixels=16 * 8 * 20)
    list(decoder.push(packets[0]))
    assert len(list(decoder.push(replace(packets[1], steps=9000, pts=9000 * TICKS)))) == 20
    late = replace(packets[2], steps=4, pts=9000 * TICKS + 9 * 90_000)
    decoder._frame_ticks = TICKS
    assert len(list(decoder.push(late, after_loss=True))) == 24


def test_a_display_size_beyond_the_largest_picture_is_the_wires_fault():
    (packet,) = encode([grey(100, 0)], n=1)
    shown = replace(packet.header, display_width=65_535, display_height=65_535)
    with pytest.raises(WireError, match="134 million pixels"):
        decode([replace(packet, header=shown)])


def test_missing_slice_keeps_what_was_there():
    packets = encode([grey(100, 0), grey(150, 1)], n=1, slices=2, cuts=False)
    decoder = Decoder(MODEL)
    list(decoder.push(packets[0]))
    (frame,) = decoder.push(replace(packets[1], slices=(packets[1].slices[0], None)))
    assert set(np.unique(frame.rgb)) == {100, 150}
    assert decoder.missing_slices == 1


def test_a_missing_slice_of_a_new_size_keeps_nothing_of_the_old_one():
    (small,) = encode([grey(100, 0)], n=1, slices=2)
    (large,) = encode([grey(150, 1, 32, 16)], 32, 16, n=1, slices=2)
    _, shown = decode([small, replace(large, slices=(large.slices[0], None))])
    assert shown.rgb.shape == (16, 32, 3) and {100, 150} & set(np.unique(shown.rgb)) == {150}


def test_broken_delta_chain_goes_on_and_heals_at_the_next_refresh():
    frames = [grey(100 + 8 * (i % 2), i) for i in range(60)]
    packets = encode(frames, n=1, refresh_s=1.0)
    del packets[3]
    decoder = Decoder(MODEL)
    shown = [(p, list(decoder.push(p, after_loss=i == 3))) for i, p in enumerate(packets)]
    assert all(got for _, got in shown)
    healed = [f for p, got in shown for f in got if f.pts >= 25 * TICKS]
    assert levels(healed) == [100 + 8 * (i % 2) for i in range(25, 60)]


def test_one_flipped_bit_of_a_fixed_slice_moves_one_block():
    packets = encode([grey(100, 0)], n=1, coder="fixed")
    clean = decode(packets)[0].rgb.astype(int)
    data = packets[0].slices[0]
    for bit in range(0, len(data) * 8, 3):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        changed = np.abs(decode([replace(packets[0], slices=(bytes(damaged),))])[0].rgb.astype(int) - clean).max(2) > 0
        assert changed.sum() <= 16


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["huffman", "fixed"]))
def test_any_bytes_in_a_slice_decode_to_a_frame(data, coder):
    packets = encode([grey(100, 0), grey(104, 1)], n=1, coder=coder)
    frames = decode([packets[0], replace(packets[1], slices=(data,))])
    assert [f.rgb.shape for f in frames] == [(8, 16, 3)] * 2


def test_a_stream_of_another_manifold_is_refused_by_name():
    (packet,) = encode([grey(100, 0)], n=1)
    other = replace(packet, header=replace(packet.header, manifold_id=bytes(8)))
    with pytest.raises(ManifoldError, match="0000000000000000"):
        decode([other])


def test_a_packet_with_the_wrong_number_of_slices_is_the_wires_fault():
    (packet,) = encode([grey(100, 0)], n=1)
    with pytest.raises(WireError):
        decode([replace(packet, slices=packet.slices * 2)])


@pytest.mark.parametrize("options", [{"n": 0}, {"n": -1}, {"n": 65_536}, {"coder": "morse"}])
def test_unusable_options_are_named(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        Encoder(MODEL, 16, 8, **options)


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match="32x8"):
        Encoder(MODEL, 16, 8).push(grey(1, 0, width=32))


def test_long_gaps_are_synthesised_as_they_are_taken():
    packets = encode([grey(100, 0), grey(110, 1)], n=1, cuts=False)
    hostile = replace(packets[1], steps=65_535, pts=65_535 * TICKS)
    decoder = Decoder(MODEL)
    list(decoder.push(replace(packets[0], header=replace(packets[0].header, n=65_535))))
    frames = decoder.push(hostile)
    assert levels([next(frames)]) == [100]


def test_same_frames_same_packets():
    frames = ramp(20, step=3)
    assert encode(frames, n=3) == encode(frames, n=3)
    assert all(isinstance(p, Packet) for p in encode(frames, n=3))


@pytest.mark.parametrize("coder", ["huffman", "fixed"])
def test_small_moves_within_the_dead_zone_keep_the_last_symbols_and_do_not_pile_up(coder):
    """Grey 103 lies half a step from symbols -13 and -12 of step 2, inside a dead zone of 0.8, and rounds to -12 (104).
    Whole keyframes, and the coder `fixed`, which has no deltas, know no dead zone."""
    frames = [grey(100, 0), grey(101, 1), grey(102, 2), grey(103, 3), grey(104, 4)]
    held = levels(decode(encode(frames, n=1, coder=coder, dead_zone=0.8)))
    assert held == ([100, 100, 102, 102, 104] if coder == "huffman" else [100, 100, 102, 104, 104])
    drift = [grey(100 + i // 2, i) for i in range(40)]
    for shown, sent in zip(levels(decode(encode(drift, n=1, coder=coder, dead_zone=1.4))), drift, strict=True):
        assert abs(shown - int(sent.rgb[0, 0, 0])) <= 2 * 1.4
    refreshed = encode(frames, n=1, dead_zone=1.4, refresh_s=0.0)
    assert levels(decode(refreshed)) == levels(decode(encode(frames, n=1, dead_zone=0.5)))


def test_a_dead_zone_stills_a_noisy_scene():
    rng = np.random.default_rng(3)
    scene = rng.integers(20, 230, (32, 32, 3))
    frames = [Frame(np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8), i * TICKS) for i in range(12)]

    def moved(zone: float) -> int:
        shown = [frame.rgb for frame in decode(encode(frames, width=32, height=32, n=1, dead_zone=zone))]
        return sum(int((a != b).sum()) for a, b in pairwise(shown))

    assert moved(0.8) < 0.5 * moved(0.5)


def tinted(index, value=100, tint=6):
    """Nearly grey, but not quite."""
    rgb = np.full((8, 16, 3), value, np.uint8)
    rgb[5, 9, 2] += tint
    return Frame(rgb, index * TICKS)


class Tinting(BlockMeans):
    """Shows everything with too much blue."""

    def synthesise(self, latents, width, height):
        return super().synthesise(latents, width, height) + np.array([0, 0, 9], np.uint8)


def shown(packets):
    decoder = Decoder(Tinting())
    return [frame.rgb.reshape(-1, 3).mean(axis=0).round(1).tolist() for packet in packets for frame in decoder.push(packet)]


def test_grey_frames_come_back_grey_and_others_as_they_are_shown():
    packets = encode([grey(100, i) for i in range(5)], n=2)
    assert [p.header.grey for p in packets if p.header] == [True]
    assert shown(packets) == [[103, 103, 103]] * 5
    packets = encode([tinted(i) for i in range(5)], n=2)
    assert not any(p.header.grey for p in packets if p.header)
    assert all(blue - red >= 9 for red, _, blue in shown(packets))


def test_the_first_colour_in_a_grey_video_is_sent_whole_and_grey_waits_for_a_refresh():
    frames = [grey(100, i) for i in range(4)] + [tinted(i) for i in range(4, 8)] + [grey(100, i) for i in range(8, 16)]
    packets = encode(frames, n=2, cuts=False, refresh_s=10 / 25)
    assert [(p.pts // TICKS, p.header.grey) for p in packets if p.header] == [(0, True), (4, False), (14, True)]
    assert [red == blue for red, _, blue in shown(packets)] == [True] * 3 + [False] * 10 + [True] * 3


def test_a_flicker_of_colour_between_two_grey_keyframes_is_colour():
    frames = [grey(100, 0), tinted(1), grey(100, 2), grey(100, 3), grey(100, 4)]
    packets = encode(frames, n=2, cuts=False)
    assert [(p.pts // TICKS, p.header.grey) for p in packets if p.header] == [(0, True), (2, False)]


def test_behind_a_cut_grey_begins_at_once():
    frames = [tinted(i) for i in range(4)] + [grey(200, i) for i in range(4, 9)]
    packets = encode(frames, n=4)
    assert [(p.pts // TICKS, p.header.grey) for p in packets if p.header] == [(0, False), (4, True)]
    assert [red == blue for red, _, blue in shown(packets)] == [False] * 4 + [True] * 5


def test_one_level_of_colour_is_none():
    assert encode([tinted(0, tint=1)])[0].header.grey
    assert not encode([tinted(0, tint=2)])[0].header.grey


def test_a_batch_is_64_frames_at_most_however_small_they_are():
    class Noting(BlockMeans):
        def __init__(self):
            super().__init__()
            self.batches = []

        def synthesise(self, latents, width, height):
            self.batches.append(len(latents))
            return super().synthesise(latents, width, height)

    model = Noting()
    packets = encode([grey(90, i, 1, 1) for i in range(201)], 1, 1, n=200)
    decoder = Decoder(model)
    assert sum(1 for packet in packets for _ in decoder.push(packet)) == 201
    assert max(model.batches) == 64


def reusing(frames):
    """The same frames, all in one array."""
    buffer = np.empty_like(frames[0].rgb)
    for frame in frames:
        buffer[:] = frame.rgb
        yield Frame(buffer, frame.pts)
    buffer[:] = 0


@pytest.mark.parametrize("frames", [ramp(10), [grey(20, i) for i in range(6)] + [grey(220, i) for i in range(6, 12)]])
def test_an_array_may_be_used_again_once_it_is_pushed(frames):
    assert encode(reusing(frames), n=4) == encode(frames, n=4)


def test_frames_of_n_1_are_not_copied():
    class Noting(BlockMeans):
        def analyse(self, rgb):
            seen.append(rgb)
            return super().analyse(rgb)

    seen, frame = [], grey(90, 0)
    Encoder(Noting(), 16, 8, n=1).push(frame)
    assert np.shares_memory(seen[0], frame.rgb)


def test_times_are_whole_ticks():
    rgb = grey(1, 0).rgb
    assert type(Frame(rgb, np.int32(5)).pts) is int
    for wrong in (2.0, None, "3"):
        with pytest.raises(TypeError, match=rf"pts is {wrong!r}; .*round\(seconds \* 90000\)"):
            Frame(rgb, wrong)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("pts", [0, 1, 2])
def test_a_time_that_does_not_rise_is_refused_and_changes_nothing(n, pts):
    encoder, frames = Encoder(MODEL, 16, 8, n=n), ramp(6)
    packets = []
    for i, frame in enumerate(frames):
        if i == 3:
            with pytest.raises(ValueError, match=rf"pts is {pts * TICKS}; .*at {2 * TICKS}"):
                encoder.push(Frame(grey(250, 0).rgb, pts * TICKS))
        packets += encoder.push(frame)
    assert packets + encoder.flush() == encode(frames, n=n)


def test_a_stream_may_start_at_any_time():
    frames = [grey(100, i - 3) for i in range(5)]
    assert [f.pts for f in decode(encode(frames, n=2))] == [f.pts for f in frames]


@pytest.mark.parametrize(
    "options",
    [
        *({"n": 2.5}, {"quality": 1.0}, {"quality": "1"}, {"slices": 0}, {"slices": 1.5}, {"display": (0, 5)}, {"display": ()}),
        *({"display": (5.5, 5)}, {"refresh_s": -1}, {"refresh_s": float("nan")}, {"width": 0}, {"height": -5}, {"width": 96.0}),
    ],
)
def test_numbers_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Encoder(MODEL, **({"width": 16, "height": 8} | options))


def test_a_refresh_of_infinity_is_the_first_keyframe_alone():
    assert [bool(p.header) for p in encode(ramp(76, step=1), n=5, refresh_s=float("inf"))] == [True] + [False] * 15


@pytest.mark.parametrize("make", [lambda model: Encoder(model, 16, 8), Decoder])
def test_what_is_no_model_is_refused_at_once(make):
    with pytest.raises(TypeError, match=r"'general' is no model; .*mcode\.load"):
        make("general")
    for wrong in ("my-model", "0011", "00112233445566FF", "00 11 22 33 44 55 66"):
        model = BlockMeans()
        model.id = wrong
        with pytest.raises(ValueError, match=rf"16 hex digits.* not '{wrong}'"):
            make(model)
