"""Whole files there and back: frames, times, sizes and sound; what is cut short, refused or not known."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from mcode import manifold
from mcode.codec import Decoder, Encoder
from mcode.container import McodeReader, McodeWriter
from mcode.errors import FormatError, InputError, ManifoldError
from mcode.frame import Frame
from mcode.jobs import Jobs
from mcode.packet import Packet
from mcode.testclip import write_clip
from mcode.training.adapt import adapt_linear
from mcode.transcode import FIT_THRESHOLD, Meter, decode_file, encode_file, even_rate, geometry
from mcode.video import FrameReader, FrameWriter, audio_packets, probe_audio

from .block_means import BlockMeans, grey
from .clips import make_clip, move_flv


@pytest.fixture(scope="module")
def model(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifold") / "arms.safetensors"
    adapt_linear([clip], path, m=10, size=(48, 32))
    return manifold.load(path, "cpu")


@pytest.fixture
def coded(clip, model, tmp_path):
    path = tmp_path / "clip.mcode"
    encode_file(clip, path, manifold=model, n=4, refresh_s=0.5)
    return path


def test_every_frame_comes_back_at_its_time_with_size_and_sound(clip, coded, model, tmp_path):
    out = tmp_path / "back.mp4"
    report = decode_file(coded, out, manifold=model)
    before, after = FrameReader(clip), FrameReader(out)
    assert report.frames == 50
    assert [f.pts for f in before] == [f.pts for f in after]
    assert (after.info.width, after.info.height) == (96, 64)
    assert after.info.audio_codec == before.info.audio_codec == "aac"


def test_report_counts_what_is_in_the_file(clip, model, tmp_path):
    path = tmp_path / "clip.mcode"
    report = encode_file(clip, path, manifold=model, n=8)
    assert (report.frames, report.keyframes, report.duration_s) == (50, 8, 2.0)
    assert report.payload_bytes == McodeReader(path).payload_bytes
    assert report.rate_kbps == pytest.approx(report.payload_bytes * 8 / 2000)
    assert report.bits_per_pixel == pytest.approx(report.payload_bytes * 8 / (48 * 32 * 50))  # at the coded size
    assert report.file_bytes == path.stat().st_size
    assert (report.manifold_id, report.n, report.coder) == (model.id, 8, "huffman")


@pytest.mark.parametrize(
    ("n", "advice"), [(2, "use a larger --n than 2, a lower"), (500, "use a lower"), (65_535, "use a lower")]
)
def test_a_rate_that_is_not_held_says_what_would_help(model, tmp_path, n, advice):
    clip = tmp_path / "clip.mp4"
    write_clip(clip, scene="arms", seconds=6, size=(48, 32), seed=1)
    report = encode_file(clip, tmp_path / "a.mcode", manifold=model, n=n, rate_kbps=0.01)
    assert [warning for warning in report.warnings if "--rate 0.01: it took" in warning and f"kbit/s; {advice}" in warning]


def test_the_last_frame_is_shown_as_long_as_in_the_source(clip, model, tmp_path):
    first = next(iter(FrameReader(clip)))
    slides = tmp_path / "slides.mp4"
    with FrameWriter(slides, width=96, height=64) as writer:
        for i in range(3):
            writer.push(Frame(first.rgb, i * 90_000))
        writer.close(7 * 90_000)
    for duration_s, seconds in ((None, 9), (5.0, 5), (1.5, 1.5)):  # the last to be shown for 7, 3 and 0.5 s
        report = encode_file(slides, tmp_path / "a.mcode", manifold=model, duration_s=duration_s, force=True)
        assert report.duration_s == seconds
        assert report.rate_kbps == pytest.approx(report.payload_bytes * 8 / 1000 / seconds)
        assert McodeReader(tmp_path / "a.mcode").duration_s == seconds
    encode_file(slides, tmp_path / "a.mcode", manifold=model, force=True)
    for name in ("b.mp4", "b.mkv"):
        decode_file(tmp_path / "a.mcode", tmp_path / name, manifold=model)
        assert FrameReader(tmp_path / name).info.duration_s == pytest.approx(9)


def test_measured_psnr_is_the_decoded_files(clip, coded, model, tmp_path):
    report = encode_file(clip, tmp_path / "again.mcode", manifold=model, n=4, size=(48, 32))
    decode_file(tmp_path / "again.mcode", tmp_path / "f-%05d.png", manifold=model)
    fed = FrameReader(clip, size=(48, 32), crop_to=(48, 32))
    errors = []
    for i, frame in enumerate(fed, start=1):
        (decoded,) = FrameReader(tmp_path / f"f-{i:05d}.png")
        errors.append(10 * np.log10(255**2 / np.mean((frame.rgb.astype(float) - decoded.rgb) ** 2)))
    assert report.psnr_db == pytest.approx(np.mean(errors), abs=0.01)


def test_a_clip_of_few_frames_a_second_lasts_as_long_as_its_source(model, tmp_path):
    source = tmp_path / "slow.mkv"
    with FrameWriter(source, width=48, height=32) as writer:
        for i in range(8):
            writer.push(Frame(np.full((32, 48, 3), 90 + 5 * i, np.uint8), i * 9000))
    report = encode_file(source, tmp_path / "slow.mcode", manifold=model)
    assert (report.frames, report.duration_s) == (8, pytest.approx(0.8, abs=0.002))


def test_a_part_of_a_video_has_the_sound_of_that_part(clip, model, tmp_path):
    encode_file(clip, tmp_path / "part.mcode", manifold=model, start_s=1.0, duration_s=0.4)
    whole, part = ([bytes(p) for p in audio_packets(path)] for path in (clip, tmp_path / "part.mcode"))
    at = whole.index(part[0])
    assert whole[at : at + len(part)] == part
    assert [at, len(part)] == pytest.approx([0.5 * len(whole), 0.2 * len(whole)], abs=4)


def test_a_flat_picture_one_level_off_fits_though_it_has_no_contrast():
    model, flat = BlockMeans(), grey(101, 0)
    meter = Meter(model, Jobs(0))
    meter.hold(flat)
    for packet in Encoder(model, 16, 8, n=1).push(flat):
        meter.measure(packet)
    meter.finish()
    assert FIT_THRESHOLD < 0.99 < meter.measures.fit < 1


def test_the_frame_behind_a_cut_is_measured_with_its_own_keyframe():
    model = BlockMeans()
    meter, encoder = Meter(model, Jobs(0)), Encoder(model, 16, 8, n=4)
    for i, level in enumerate((20, 20, 20, 221)):  # exact, but for the last, which is one level off
        meter.hold(frame := grey(level, i))
        for packet in encoder.push(frame):
            meter.measure(packet)
    meter.finish()
    assert meter.measures.psnr_db == pytest.approx((3 * 100 + 20 * np.log10(255)) / 4)


def test_of_later_gaps_one_frame_in_between_stands_for_all_of_them(monkeypatch):
    model, made = BlockMeans(), []
    synthesise = model.synthesise
    monkeypatch.setattr(model, "synthesise", lambda *given: made.append(len(given[0])) or synthesise(*given))
    monkeypatch.setattr(Meter, "ALL_GAPS", 1)
    meter, encoder = Meter(model, Jobs(0)), Encoder(model, 16, 8, n=4, cuts=False)
    levels = [20, *[20] * 8, *[20, 20, 221, 20] * 3]  # 221 alone in each gap is far off what lies between two keyframes of 20
    measure(meter, encoder, levels)
    assert made == [1, *[2] * 5], "the keyframe and one in between"
    assert meter.measures.frames == len(levels)
    wrong = 3  # in one gap of the three in which it comes it is that frame's turn
    far_db = 20 * np.log10(255 / 201)
    assert meter.measures.psnr_db == pytest.approx((100 * (len(levels) - wrong) + wrong * far_db) / len(levels))
    whole = Meter(model, Jobs(0), every_frame=True)
    measure(whole, Encoder(model, 16, 8, n=4, cuts=False), levels)
    assert made[6:] == [1, *[4] * 5]


@pytest.mark.parametrize(("n", "first"), [(64, 1), (64, 64), (50, 1)])
def test_long_gaps_count_as_long_as_they_are_and_their_keyframes_are_measured(monkeypatch, n, first):
    monkeypatch.setattr(Meter, "ALL_GAPS", first)
    model = BlockMeans()
    meter, count = Meter(model, Jobs(0)), 1 + 3 * n
    levels = [221 if i % n == 0 else 20 for i in range(count)]  # keyframes are one level off
    measure(meter, Encoder(model, 16, 8, n=n, cuts=False), levels)
    assert meter.measures.frames == pytest.approx(count)
    exact = Meter(model, Jobs(0))
    measure(exact, Encoder(model, 16, 8, n=n, cuts=False), [20] * (count - 1) + [221])
    assert exact.measures.psnr_db < 100, "the last keyframe is measured"


def measure(meter, encoder, levels):
    for i, level in enumerate(levels):
        meter.hold(frame := grey(level, i))
        for packet in encoder.push(frame):
            meter.measure(packet)
    meter.finish()


def test_turns_of_frames_in_between_do_not_follow_a_motion_that_repeats(monkeypatch):
    """One gap in three is of other frames: a fixed cycle would always measure the same ones of them."""
    monkeypatch.setattr(Meter, "ALL_GAPS", 1)
    model = BlockMeans()
    meter = Meter(model, Jobs(0))
    levels = [20, *[20] * 8, *([20] * 4 + [20, 20, 221, 20] + [20] * 4) * 30]
    measure(meter, Encoder(model, 16, 8, n=4, cuts=False), levels)
    far_db = 20 * np.log10(255 / 201)
    hits = (100 * len(levels) - meter.measures.psnr_db * len(levels)) / (100 - far_db) / 3
    assert 3 < hits < 20


def test_an_image_is_one_refresh_keyframe(clip, model, tmp_path):
    picture = tmp_path / "one.png"
    first = next(iter(FrameReader(clip)))
    with FrameWriter(picture, width=96, height=64) as writer:
        writer.push(first)
    report = encode_file(picture, tmp_path / "one.mcode", manifold=model, n=4)
    assert (report.frames, report.keyframes, report.n) == (1, 1, 1)
    assert decode_file(tmp_path / "one.mcode", tmp_path / "back.png", manifold=model).frames == 1


def test_a_cut_off_picture_is_warned_of(clip, model, tmp_path):
    picture = tmp_path / "one.jpg"
    Image.fromarray(next(iter(FrameReader(clip))).rgb).save(picture)
    assert not encode_file(picture, tmp_path / "one.mcode", manifold=model).warnings
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size * 2 // 3])
    report = encode_file(picture, tmp_path / "cut.mcode", manifold=model)
    assert report.warnings[0] == f"{picture} is cut off or damaged: a part of its picture is only filled in"


def test_a_picture_that_a_manifold_does_not_suit_gets_advice_for_pictures(tmp_path):
    noise = tmp_path / "noise.png"
    with FrameWriter(noise, width=64, height=48) as writer:
        writer.push(Frame(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8), 0))
    (warning,) = encode_file(noise, tmp_path / "a.mcode", manifold="general", quality=1).warnings
    assert warning.endswith("does not suit this picture; use --quality 3 or a smaller --size")


@pytest.mark.parametrize("coder", ["huffman", "fixed"])
@pytest.mark.parametrize("n", [1, 7, 500])
def test_any_n_gives_every_frame_back(clip, model, tmp_path, n, coder):
    report = encode_file(clip, tmp_path / "c.mcode", manifold=model, n=n, coder=coder)
    assert report.keyframes == 1 + -(-49 // n)
    assert decode_file(tmp_path / "c.mcode", tmp_path / "c.mkv", manifold=model).frames == 50


def keyframes(*times: int, steps: int = 1, gaps: tuple[int, ...] | None = None) -> list[Packet]:
    return [Packet(pts, steps if i else 1, gaps if i else None, None, (b"",)) for i, pts in enumerate(times)]


NTSC = Fraction(30_000, 1001)


@pytest.mark.parametrize(
    ("packets", "fps"),
    [
        (keyframes(0, 3600, 7200, 10_800), 25),
        (keyframes(0, 14_400, 28_800, steps=4), 25),
        (keyframes(0, 3003, 6006, 9009), NTSC),
        (keyframes(*(round(i * 1001 / 30) * 90 for i in range(200))), NTSC),  # as Matroska rounds it
        (keyframes(*(round(i * 1000 / 60) * 90 for i in range(200))), 60),
        (keyframes(0, 7200, 14_400), Fraction(25, 2)),
        (keyframes(0, 900_000, 1_800_000), Fraction(1, 10)),
        (keyframes(0), None),
        (keyframes(0, 3600, 7200, 14_400), None),
        (keyframes(0, 9000, 18_000, steps=3, gaps=(8000, 1000)), None),
    ],
)
def test_even_frames_have_a_rate(packets, fps):
    assert even_rate(packets) == fps


def test_matroska_bears_the_sources_rate_and_its_times(model, tmp_path):
    source = tmp_path / "source.mp4"
    with FrameWriter(source, width=48, height=32) as writer:
        for i in range(40):
            writer.push(Frame(np.full((32, 48, 3), 5 * i, np.uint8), i * 3003))
    encode_file(source, tmp_path / "c.mcode", manifold=model, n=4)
    decode_file(tmp_path / "c.mcode", tmp_path / "back.mkv", manifold=model)
    back = FrameReader(tmp_path / "back.mkv")
    assert back.info.average_fps == pytest.approx(30_000 / 1001, rel=1e-4)
    assert [frame.pts for frame in back] == pytest.approx([i * 3003 for i in range(40)], abs=45)  # half a millisecond


def test_a_cut_off_stream_gives_what_is_whole_and_says_how_much(clip, model, tmp_path):
    path = tmp_path / "silent.mcode"
    encode_file(clip, path, manifold=model, n=2, audio="none")
    data = path.read_bytes()
    shown = set()
    for part in (0.3, 0.75, 0.82, 0.9, 0.97):
        cut = tmp_path / f"cut{part}.mcode"
        cut.write_bytes(data[: int(len(data) * part)])
        try:
            report = decode_file(cut, tmp_path / "cut.mp4", manifold=model, force=True)
        except FormatError:
            continue
        shown.add(report.frames)
        assert report.frames < 50 and any("cut off" in w for w in report.warnings)
    assert len(shown) > 1


def test_a_cut_off_video_is_encoded_as_far_as_it_decodes(clip, model, tmp_path):
    from mcode.testclip import write_clip

    whole = tmp_path / "whole.mkv"
    write_clip(whole, scene="arms", seconds=2, size=(96, 64), seed=1)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    report = encode_file(cut, tmp_path / "cut.mcode", manifold=model)
    assert 5 < report.frames < 50
    assert any("cut off" in w for w in report.warnings)


def test_pictures_that_cannot_be_decoded_or_have_wrong_times_are_told(model, tmp_path):
    source = make_clip(tmp_path / "a.flv", frames=30, codec="flv")
    move_flv(source, 9, {20: 3600})
    report = encode_file(source, tmp_path / "a.mcode", manifold=model, size=(48, 32))
    assert report.frames == 30 and report.duration_s == pytest.approx(1.2)
    assert report.warnings[0] == f"{source}: the time of 1 of its pictures is out of order, and replaced by one in between"
    source = make_clip(tmp_path / "b.mkv", frames=30, codec="mjpeg", pixel_format="yuvj420p")
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for at, size in packets[10:15]:
        data[at + 4 : at + size] = b"\xa5" * (size - 4)
    source.write_bytes(data)
    report = encode_file(source, tmp_path / "b.mcode", manifold=model)
    assert report.frames == 25 and report.warnings[0] == (
        f"{source} is damaged: 5 packets of its pictures could not be decoded, what they show is left out"
    )


def test_a_leap_in_time_names_the_source_and_its_remedies_work(model, tmp_path):
    source = tmp_path / "slow.y4m"
    with FrameWriter(source, width=48, height=32, fps=Fraction(1, 20_000)) as writer:
        for i in range(4):
            writer.push(Frame(np.full((32, 48, 3), 90, np.uint8), i * 20_000 * 90_000))
    with pytest.raises(
        InputError, match=r"slow.y4m: time leaps by 16\.7 hours .* by --start and --duration, or use a smaller --n"
    ):
        encode_file(source, tmp_path / "a.mcode", manifold=model, n=3)
    assert not (tmp_path / "a.mcode").exists()
    assert encode_file(source, tmp_path / "a.mcode", manifold=model, n=1).frames == 4
    assert encode_file(source, tmp_path / "b.mcode", manifold=model, start_s=20_000, duration_s=40_000, n=3).frames == 2


def test_the_streams_manifold_is_found_or_named(coded, model, tmp_path, monkeypatch):
    monkeypatch.delenv(manifold.SEARCH_VARIABLE, raising=False)
    with pytest.raises(ManifoldError, match=model.id):
        decode_file(coded, tmp_path / "x.mp4")
    assert not (tmp_path / "x.mp4").exists()
    monkeypatch.setenv(manifold.SEARCH_VARIABLE, str(model.info.path.parent))
    assert decode_file(coded, tmp_path / "x.mp4").frames == 50


def test_another_manifold_than_the_streams_is_refused(clip, coded, tmp_path):
    other = tmp_path / "other.safetensors"
    adapt_linear([clip], other, m=5, size=(48, 32))
    with pytest.raises(ManifoldError, match="this stream needs manifold"):
        decode_file(coded, tmp_path / "x.mp4", manifold=other)
    assert not (tmp_path / "x.mp4").exists()


def test_a_flipped_bit_in_a_later_manifold_id_is_bridged(coded, model, tmp_path):
    data = bytearray(coded.read_bytes())
    manifold_id = bytes.fromhex(model.id)
    second = data.find(manifold_id, data.find(manifold_id) + 1)
    data[second] ^= 1
    damaged = tmp_path / "damaged.mcode"
    damaged.write_bytes(data)
    report = decode_file(damaged, tmp_path / "x.mp4", manifold=model)
    assert report.frames == 50 and report.warnings == (f"{damaged} is damaged: 1 keyframe could not be read and is bridged",)


@pytest.mark.parametrize(
    ("flips", "frames", "warning"),
    [
        ({5: (0, 8)}, 50, "1 keyframe could not be read and is bridged"),
        ({5: (0, 8), 6: (0, 16), 9: (0, 8)}, 50, "3 keyframes could not be read and are bridged"),
        ({0: (1, 1)}, 34, "the first 4 keyframes cannot be decoded, the picture begins at 0.64 s"),  # format 0
        ({0: (2, 0x20)}, 34, "the first 4 keyframes cannot be decoded, the picture begins at 0.64 s"),  # coder 3
        ({0: (2, 14)}, 34, "the first 4 keyframes cannot be decoded, the picture begins at 0.64 s"),  # quality 15
        ({0: (0, 1)}, 34, "the first 4 keyframes cannot be decoded, the picture begins at 0.64 s"),  # no refresh
        ({13: (0, 8)}, 49, "the last keyframe cannot be decoded, the picture ends at 1.92 s"),
        ({12: (0, 8), 13: (0, 8)}, 45, "the last 2 keyframes cannot be decoded, the picture ends at 1.76 s"),
    ],
)
def test_what_damaged_samples_cost_is_said(coded, model, tmp_path, flips, frames, warning):
    """flips: by sample, a byte of it and what it is XORed with. Refreshes are the samples 0, 4, 8 and 12."""
    data, reader = bytearray(coded.read_bytes()), McodeReader(coded)
    for sample, (byte, bits) in flips.items():
        data[reader._at[sample] + byte] ^= bits
    damaged = tmp_path / "damaged.mcode"
    damaged.write_bytes(data)
    report = decode_file(damaged, tmp_path / "x.mp4", manifold=model)
    assert report.frames == frames and report.warnings == (f"{damaged} is damaged: {warning}",)


def test_behind_a_damaged_sample_decoding_knows_of_the_loss(coded, model, tmp_path, monkeypatch):
    data, told = bytearray(coded.read_bytes()), []
    data[McodeReader(coded)._at[5]] ^= 8
    (tmp_path / "damaged.mcode").write_bytes(data)
    push = Decoder.push
    monkeypatch.setattr(Decoder, "push", lambda *a, after_loss: told.append(after_loss) or push(*a, after_loss=after_loss))
    decode_file(tmp_path / "damaged.mcode", tmp_path / "x.mp4", manifold=model)
    assert told == [i == 5 for i in range(13)]


def test_a_picture_that_cannot_be_decoded_says_why(clip, model, tmp_path):
    encode_file(clip, tmp_path / "a.mcode", manifold=model, n=1, duration_s=0.04)
    data = bytearray((tmp_path / "a.mcode").read_bytes())
    data[McodeReader(tmp_path / "a.mcode")._at[0] + 2] |= 15
    (tmp_path / "a.mcode").write_bytes(data)
    with pytest.raises(
        FormatError, match=r"a\.mcode: no keyframe can be decoded \(quality 15 is outside 1\.\.8 of manifold arms\)$"
    ):
        decode_file(tmp_path / "a.mcode", tmp_path / "x.png", manifold=model)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("ticks", [45, 3])
def test_frames_closer_than_a_millisecond_all_come_back(model, tmp_path, ticks):
    frames = [Frame(np.full((32, 48, 3), 90 + i % 50, np.uint8), i * ticks) for i in range(201)]
    encoder = Encoder(model, 48, 32, n=100, cuts=False)
    with McodeWriter(tmp_path / "fast.mcode") as writer:
        for packet in [p for frame in frames for p in encoder.push(frame)]:
            writer.write(packet, 100)
    decoder = Decoder(model)
    shown = [frame.pts for packet in McodeReader(tmp_path / "fast.mcode") for frame in decoder.push(packet)]
    assert shown == [frame.pts for frame in frames]


def test_input_and_output_are_never_the_same_file(clip, coded, model, tmp_path):
    copy = tmp_path / "copy.mp4"
    shutil.copy(clip, copy)
    with pytest.raises(InputError, match="same file"):
        encode_file(copy, copy, manifold=model, force=True)
    with pytest.raises(InputError, match="same file"):
        decode_file(coded, coded, manifold=model, force=True)
    assert copy.read_bytes() == clip.read_bytes()


def test_names_that_promise_another_file_are_refused(clip, model, tmp_path):
    for name in ("a.mp4", "a.MKV", "a.png"):
        with pytest.raises(InputError, match=r"encode writes .mcode files, no \.\w+; name it .*a\.mcode$"):
            encode_file(clip, tmp_path / name, manifold=model)
    with pytest.raises(InputError, match=r"^-o -: .* as out\.mcode$"):
        encode_file(clip, "-", manifold=model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "warned"), [("a.xyz", True), ("a", True), ("a.mcode", False), (os.devnull, False)])
def test_other_names_are_warned_of(clip, model, tmp_path, name, warned):
    report = encode_file(clip, tmp_path / name, manifold=model, duration_s=0.2)
    assert any(w == f"{tmp_path / name} is an .mcode file, whatever its name" for w in report.warnings) == warned


def test_an_existing_output_is_kept_without_force(clip, model, tmp_path):
    kept = tmp_path / "kept.mcode"
    kept.write_bytes(b"mine")
    with pytest.raises(InputError, match="force"):
        encode_file(clip, kept, manifold=model)
    assert kept.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


def test_a_start_behind_the_end_says_so_and_leaves_nothing(clip, model, tmp_path):
    with pytest.raises(InputError, match="nothing to show from 60 s on"):
        encode_file(clip, tmp_path / "none.mcode", manifold=model, start_s=60)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing(clip, model, tmp_path):
    def stop(done, total):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_file(clip, tmp_path / "c.mcode", manifold=model, progress=stop)
    assert not list(tmp_path.iterdir())


def test_geometry_codes_the_manifolds_size_and_shows_what_it_covers():
    assert geometry((360, 288), None, (128, 128)) == ((128, 128), (288, 288), (128, 128))
    assert geometry((360, 288), (128, 128), (128, 128)) == ((128, 128), (128, 128), (128, 128))
    assert geometry((640, 360), None, None) == ((640, 360), (640, 360), None)
    assert geometry((640, 360), (320, 320), None) == ((320, 320), (320, 320), (320, 320))


def test_frames_whose_time_does_not_rise_are_left_out_and_counted(coded, model, tmp_path, monkeypatch):
    packets = list(McodeReader(coded))
    packets[3] = replace(packets[3], pts=packets[1].pts)
    monkeypatch.setattr(McodeReader, "__iter__", lambda reader: iter(packets))
    report = decode_file(coded, tmp_path / "back.mp4", manifold=model)
    times = [f.pts for f in FrameReader(tmp_path / "back.mp4")]
    assert report.frames == len(times) and times == sorted(set(times))
    assert "2 frames are left out" in report.warnings[0]  # that keyframe, and one on the way from it


@pytest.mark.parametrize(("audio", "kept"), [("copy", True), (True, True), ("none", False), (False, False)])
def test_sound_is_kept_or_left_out_by_word_or_truth(clip, model, tmp_path, audio, kept):
    out, back = tmp_path / "a.mcode", tmp_path / "a.mp4"
    encode_file(clip, out, manifold=model, n=8, duration_s=0.3, audio=audio)
    assert bool(probe_audio(out)) == kept
    encode_file(clip, out, manifold=model, n=8, duration_s=0.3, force=True)
    decode_file(out, back, manifold=model, audio=audio)
    assert bool(probe_audio(back)) == kept


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "options",
    [
        *({"n": 0}, {"n": 2.5}, {"coder": "x"}, {"refresh_s": -1}, {"refresh_s": NAN}, {"audio": "aac"}, {"audio": None}),
        *(
            {"size": (0, 0)},
            {"size": (-4, 10)},
            {"size": (64.0, 64)},
            {"size": "64x64"},
            {"size": (1, 70_000)},
            {"size": (64,)},
        ),
        *({"duration_s": INF}, {"duration_s": 0}, {"duration_s": NAN}, {"start_s": NAN}, {"start_s": INF}, {"start_s": -1}),
    ],
)
def test_options_out_of_range_are_refused_in_one_line_and_nothing_is_written(clip, model, tmp_path, options):
    with pytest.raises(InputError) as error:
        encode_file(clip, tmp_path / "a.mcode", manifold=model, **options)
    assert "\n" not in str(error.value) and next(iter(options)).partition("_")[0] in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"size": (0, 0)}, {"size": (-2, 4)}, {"size": (64.5, 64)}, {"audio": "aac"}])
def test_decode_refuses_what_encode_does(clip, model, tmp_path, options):
    encode_file(clip, tmp_path / "a.mcode", manifold=model, duration_s=0.2)
    with pytest.raises(InputError, match=next(iter(options))):
        decode_file(tmp_path / "a.mcode", tmp_path / "a.mp4", manifold=model, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mcode"]
