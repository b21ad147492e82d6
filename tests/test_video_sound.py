"""The sound of a video: the same samples at the same time, and what becomes of it is told."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from mcode import video
from mcode.video import FrameReader, FrameWriter, audio_packets, probe, sound
from tests.clips import FPS, RATE, copy_of, heard, make_clip, move_flv, read_all, sound_of


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("aac", ".mp4"), ("libmp3lame", ".mp4"), ("libopus", ".mkv"), ("flac", ".mkv"), ("aac", ".ts")],
)
@pytest.mark.parametrize("output", [".mp4", ".mkv"])
def test_copied_sound_decodes_to_the_same_samples_at_the_same_time(
    tmp_path: Path, codec: str, suffix: str, output: str
) -> None:
    source = make_clip(tmp_path / f"a{suffix}", frames=50, audio=codec)
    copy = copy_of(source, tmp_path / f"b{output}", audio_from=tmp_path / f"a{suffix}")
    assert probe(copy).audio_codec == probe(source).audio_codec
    if ".mkv" in (suffix, output):
        assert_same_sound(heard(source), heard(copy), shift=RATE // 1000, start=1024)
    else:
        assert_same_sound(heard(source), heard(copy))


def assert_same_sound(a: np.ndarray, b: np.ndarray, shift: int = 0, start: int = 0) -> None:
    """b is a, from sample `start` on, moved by at most `shift` samples (Matroska rounds a track's start to 1 ms)."""
    length = min(len(a), len(b))
    assert length > 10_000 and abs(len(a) - len(b)) <= 2048
    part = slice(start + shift, length - shift)
    assert min(np.abs(a[part] - np.roll(b, s)[part]).max() for s in range(-shift, shift + 1)) < 1e-4


def test_sound_that_the_container_cannot_hold_becomes_aac(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.avi", frames=50, codec="mpeg4", audio="pcm_mulaw")
    reader = FrameReader(source)
    with FrameWriter(tmp_path / "b.mp4", width=64, height=48, audio_from=source) as writer:
        for frame in reader:
            writer.push(frame)
    assert probe(tmp_path / "b.mp4").audio_codec == "aac"
    assert any("pcm_mulaw" in warning for warning in writer.warnings)
    a, b = heard(source), heard(tmp_path / "b.mp4")
    lags = [np.corrcoef(a[4000:90000], b[4000 + s : 90000 + s])[0, 1] for s in range(-20, 21)]
    assert int(np.argmax(lags)) == 20 and max(lags) > 0.99


@pytest.mark.parametrize("audio", ["ac3", "adpcm_ms"])
def test_avi_of_one_packet_of_sound_a_tick_keeps_all_of_them(tmp_path: Path, audio: str) -> None:
    path = make_clip(tmp_path / "a.avi", frames=50, codec="mpeg4", audio=audio)
    found = [p.pts * p.time_base for p in audio_packets(path)]
    assert len(found) == len(sound_of(path)) > 30
    steps = {float(b - a) for a, b in pairwise(found)}
    assert min(steps) == pytest.approx(max(steps))


@pytest.mark.parametrize("output", [".mp4", ".mkv"])
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".nut"])
def test_pcm_of_any_number_of_channels_is_copied(tmp_path: Path, suffix: str, layout: str, output: str) -> None:
    source = make_clip(tmp_path / f"a{suffix}", frames=10, codec="mpeg4", audio="pcm_s16le", layout=layout)
    copy = copy_of(source, tmp_path / f"b{output}", audio_from=source)
    assert b"".join(sound_of(copy)) == b"".join(sound_of(source)) != b""
    assert channels_of(copy) == channels_of(source)


def channels_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return container.streams.audio[0].codec_context.channels


@pytest.mark.parametrize("layout", ["stereo", "5.1"])
def test_sound_that_becomes_aac_keeps_its_channels(tmp_path: Path, layout: str) -> None:
    source = make_clip(tmp_path / "a.mkv", frames=10, audio="pcm_u8", layout=layout)
    copy = copy_of(source, tmp_path / "b.mp4", audio_from=source)
    assert probe(copy).audio_codec == "aac" and channels_of(copy) == channels_of(source)


def test_which_of_several_sound_tracks_is_kept_is_told(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", frames=5, audio="aac", tracks=3)
    with FrameWriter(tmp_path / "b.mp4", width=64, height=48, audio_from=source) as writer:
        for frame in FrameReader(source):
            writer.push(frame)
    assert writer.warnings == (f"{source}: 1 of 3 sound tracks is kept, number 1",)


@pytest.mark.parametrize(("suffix", "codec"), [(".flv", "flv"), (".avi", "libx264")])
def test_a_start_within_the_first_second_keeps_the_sound_from_there_on(tmp_path: Path, suffix: str, codec: str) -> None:
    path = make_clip(tmp_path / f"a{suffix}", frames=100, codec=codec, audio="libmp3lame", options={"g": "50", "bf": "0"})
    everything = [bytes(p) for p in audio_packets(path)]
    found = list(audio_packets(path, 0.5))
    assert [bytes(p) for p in found] == everything[-len(found) :]
    assert -0.06 < found[0].pts * found[0].time_base <= 0


def test_sound_starts_with_matroskas_pictures_where_these_begin_late(tmp_path: Path) -> None:
    pictures = make_clip(tmp_path / "a.mp4", frames=75, options={"g": "24", "bf": "3", "b_strategy": "0"})
    sound, path = make_clip(tmp_path / "b.mp4", frames=325, video=False, audio="aac"), tmp_path / "a.mkv"
    with av.open(str(pictures)) as films, av.open(str(sound)) as sounds, av.open(str(path), "w") as out:
        tracks = {s: out.add_stream_from_template(s) for s in (*films.streams, *sounds.streams)}
        packets = [p for p in (*films.demux(), *sounds.demux()) if p.size]
        for packet in packets[:75]:
            packet.pts, packet.dts = (time + int(10 / packet.time_base) for time in (packet.pts, packet.dts))
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            packet.stream = tracks[packet.stream]
            out.mux(packet)
    begins = float(video.picture_zero(path))
    assert 10 <= begins < 10.1
    for index in range(1, 60):
        assert float(video.picture_zero(path, index / FPS - 0.02)) == pytest.approx(begins + index / FPS)


@pytest.mark.parametrize(("number", "leap_s"), [(0, 2), (20, 2), (20, 3600), (20, -3600)])
def test_one_wrong_time_loses_no_sound(tmp_path: Path, number: int, leap_s: int) -> None:
    path = make_clip(tmp_path / "a.flv", frames=50, codec="flv", audio="libmp3lame")
    times = [float(p.pts * p.time_base) for p in audio_packets(path)]
    move_flv(path, 8, {number: leap_s})
    found = [float(p.pts * p.time_base) for p in audio_packets(path)]
    assert found == pytest.approx(times, abs=0.003)


def test_sound_that_claims_to_last_for_ever_is_left_out_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, demuxed = make_clip(tmp_path / "a.mp4", audio="aac"), sound.demuxed

    def damaged(*arguments: object) -> Iterator[av.Packet]:
        later = 0
        for packet in demuxed(*arguments):
            if packet.stream.type == "audio" and packet.size:
                packet.pts, packet.dts = packet.pts + later, packet.dts + later
                if 20 * 1024 <= packet.pts < 21 * 1024:
                    packet.duration = later = 1 << 32
            yield packet

    monkeypatch.setattr(sound, "demuxed", damaged)
    count = len(sound_of(path))
    with FrameWriter(tmp_path / "b.mp4", width=64, height=48, audio_from=path) as writer:
        for frame in FrameReader(path):
            writer.push(frame)
    kept = len(sound_of(tmp_path / "b.mp4"))
    assert 20 <= kept < count
    assert writer.warnings == (f"the sound of {path} is damaged: {count - kept} of its packets left out",)


def test_one_wrong_duration_loses_no_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "a.mkv", frames=50, audio="ac3")
    times = [float(p.pts * p.time_base) for p in audio_packets(path)]
    demuxed = sound.demuxed

    def damaged(*arguments: object) -> Iterator[av.Packet]:
        for packet in demuxed(*arguments):
            if packet.stream.type == "audio" and packet.size and 1000 <= packet.pts < 1032:
                packet.duration = 60_000
            yield packet

    monkeypatch.setattr(sound, "demuxed", damaged)
    found = list(audio_packets(path))
    assert [float(p.pts * p.time_base) for p in found] == pytest.approx(times, abs=0.003)
    assert max(p.duration for p in found) < 2 * 1536


def test_sound_behind_a_pause_that_no_container_holds_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.flv", frames=50, codec="flv", audio="libmp3lame")
    move_flv(path, 8, dict.fromkeys(range(20, 1000), 1e5))
    count = len(sound_of(path))
    with FrameWriter(tmp_path / "b.mp4", width=64, height=48, audio_from=path) as writer:
        for frame in FrameReader(path):
            writer.push(frame)
    assert writer.warnings == (f"the sound of {path} is damaged: {count - 20} of its packets left out",)
    assert len(sound_of(tmp_path / "b.mp4")) == 20


def test_sound_is_cut_with_the_pictures(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=100, audio="aac")
    reader = FrameReader(source, start_s=1.0, duration_s=2.0)
    output = tmp_path / "b.mp4"
    with FrameWriter(output, width=64, height=48, audio_from=source, start_s=1.0, duration_s=2.0) as writer:
        for frame in reader:
            writer.push(frame)
    expected, got = heard(source, Fraction(1)), heard(output)
    assert 2 * RATE <= len(got) <= 2 * RATE + 1024
    assert np.abs(expected[1024 : len(got)] - got[1024:]).max() < 1e-4


def test_audio_packets_start_at_most_one_packet_early(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=100, audio="aac")
    times = [float(p.pts * p.time_base) for p in audio_packets(source, 1.0, 2.0)]
    assert -2 * 1024 / RATE < times[0] <= 0 and times[-1] < 2.0
    assert np.allclose(np.diff(times), 1024 / RATE)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path, suffix: str) -> None:
    path = make_clip(tmp_path / "a.mp4", audio="aac")
    path.write_bytes(path.read_bytes().replace(b"esds", b"free"))  # what the decoder must know of the sound
    reader = FrameReader(path)
    with FrameWriter(tmp_path / f"b{suffix}", width=64, height=48, audio_from=path) as writer:
        for frame in reader:
            writer.push(frame)
    assert writer.warnings == (f"the sound of {path} cannot be read: it is left out",)
    assert read_all(tmp_path / f"b{suffix}") == (25, None) and probe(tmp_path / f"b{suffix}").audio_codec is None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_packet_of_sound_that_does_not_fit_is_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    cut = sound._cut

    def damaged(*arguments: object) -> Iterator[av.Packet]:
        for number, packet in enumerate(cut(*arguments)):
            if number == 5:
                packet.pts = packet.dts = packet.dts - 10_000  # before the one before
            yield packet

    monkeypatch.setattr(sound, "_cut", damaged)
    path = make_clip(tmp_path / "a.mp4", audio="aac")
    with FrameWriter(tmp_path / f"b{suffix}", width=64, height=48, audio_from=path) as writer:
        for frame in FrameReader(path):
            writer.push(frame)
    assert writer.warnings == (f"the sound of {path} is damaged: 1 of its packets left out",)
    assert probe(tmp_path / f"b{suffix}").audio_codec == "aac"


def test_a_silent_source_gives_a_silent_file(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=3)
    assert list(audio_packets(source)) == []
    assert probe(copy_of(source, tmp_path / "b.mp4", audio_from=source)).audio_codec is None
