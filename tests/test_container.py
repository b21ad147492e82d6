"""The .mcode file: samples, times, sound and texts come back; whatever cuts it short, what is whole can be read."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from mcode import container
from mcode.container import McodeReader, McodeWriter, check_gap
from mcode.errors import FormatError, InputError
from mcode.frame import TICKS_PER_S
from mcode.packet import Packet, StreamHeader
from mcode.video import FrameWriter, picture_zero
from tests.clips import frames_of, heard, make_clip, move_flv, sound_of

N = 4
STEP = N * 3600  # ticks between keyframes at 25 frames/s
HEADER = StreamHeader(
    manifold_id=b"12345678", width=64, height=48, display_width=64, display_height=48,
    n=N, coder="huffman", quality=3, slices=1,
)  # fmt: skip


def keyframe(index: int, refresh_every: int = 10, size: int = 14, pts: int | None = None) -> Packet:
    data = bytes((index * 31 + k) % 256 for k in range(size + index % 3))
    refresh = index % refresh_every == 0
    return Packet(
        pts=index * STEP if pts is None else pts,
        steps=1 if index == 0 else N,
        times=None,
        header=HEADER if refresh else None,
        slices=(data,),
    )


def write(path: Path, count: int = 20, refresh_every: int = 10, **options: object) -> McodeWriter:
    with McodeWriter(path, **options) as writer:
        for i in range(count):
            writer.write(keyframe(i, refresh_every), N)
    return writer


def pts_and_slices(packets: object) -> list[tuple[int, bytes]]:
    return [(p.pts, p.slices[0]) for p in packets]


def test_packets_come_back_with_their_times(tmp_path: Path) -> None:
    writer = write(tmp_path / "a.mcode", metadata={"manifold": "general", "title": "Grüße"})
    reader = McodeReader(tmp_path / "a.mcode")
    assert pts_and_slices(reader) == pts_and_slices(keyframe(i) for i in range(20))
    assert reader.header == HEADER
    assert reader.metadata == {"manifold": "general", "title": "Grüße"}
    assert reader.payload_bytes == writer.payload_bytes == sum(len(keyframe(i).to_sample(N)) for i in range(20))
    assert (len(reader), reader.duration_s, reader.truncated, reader.damaged) == (20, 20 * STEP / TICKS_PER_S, None, 0)


def test_variable_times_and_the_last_duration_are_exact(tmp_path: Path) -> None:
    gaps = np.random.default_rng(0).integers(1, 400_000, 60)
    times = [int(t) for t in np.cumsum(gaps)]
    with McodeWriter(tmp_path / "a.mcode") as writer:
        for i, pts in enumerate(times):
            writer.write(keyframe(i, pts=pts), N)
        writer.close(last_duration_ticks=12_345)
    reader = McodeReader(tmp_path / "a.mcode")
    assert [p.pts for p in reader] == times
    assert reader.end_ticks == times[-1] + 12_345 and reader.truncated is None


def test_times_of_a_calendar_are_exact(tmp_path: Path) -> None:
    start = 1_796_000_000 * TICKS_PER_S  # the clock of a computer in 2026; a header tells 49.7 days at most
    with McodeWriter(tmp_path / "a.mcode") as writer:
        for i in range(4):
            writer.write(keyframe(i, pts=start + i), N)
        writer.close(last_duration_ticks=1 << 33)
    reader = McodeReader(tmp_path / "a.mcode")
    assert [p.pts for p in reader] == [start + i for i in range(4)] and reader.truncated is None


def test_times_before_the_start_are_refused_at_once(tmp_path: Path) -> None:
    with McodeWriter(tmp_path / "a.mcode") as writer:
        with pytest.raises(ValueError, match="pts is -3; a file's times begin at 0 or later"):
            writer.write(keyframe(0, pts=-3), N)
        writer.write(keyframe(0), N)
    assert len(McodeReader(tmp_path / "a.mcode")) == 1


def test_any_mp4_reader_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "a.mcode", count=200)
    with av.open(str(tmp_path / "a.mcode")) as mp4:
        assert mp4.duration / av.time_base == pytest.approx(200 * STEP / TICKS_PER_S)
        assert [s.type for s in mp4.streams] == ["data"]
        samples = [bytes(p) for p in mp4.demux(mp4.streams.data[0]) if p.size]
    assert samples == [keyframe(i).to_sample(N) for i in range(200)]


def test_refreshes_and_only_they_are_sync_samples(tmp_path: Path) -> None:
    assert sync_flags(write_and_read(tmp_path / "a.mcode", 300, 10)) == [i % 10 == 0 for i in range(300)]
    assert sync_flags(write_and_read(tmp_path / "b.mcode", 300, 7)) == [i % 7 == 0 for i in range(300)]
    assert sync_flags(write_and_read(tmp_path / "c.mcode", 300, 300)) == [i == 0 for i in range(300)]
    assert all(sync_flags(write_and_read(tmp_path / "d.mcode", 50, 1)))


def write_and_read(path: Path, count: int, refresh_every: int) -> bytes:
    write(path, count, refresh_every)
    return path.read_bytes()


def sync_flags(data: bytes) -> list[bool]:
    """A second reader of moof, by the letter of ISO/IEC 14496-12, 8.8, for one track without gaps in its boxes."""
    flags: list[int] = []
    at = 0
    while (at := data.find(b"tfhd", at)) >= 0:
        head_flags = struct.unpack(">I", data[at + 4 : at + 8])[0]
        position = at + 12 + 4 * bool(head_flags & 8) + 4 * bool(head_flags & 16)
        default = struct.unpack(">I", data[position : position + 4])[0] if head_flags & 32 else None
        run = data.index(b"trun", at)
        run_flags, count, _ = struct.unpack(">III", data[run + 4 : run + 16])
        position = run + 16
        first = None
        if run_flags & 4:
            first = struct.unpack(">I", data[position : position + 4])[0]
            position += 4
        for i in range(count):
            position += 4 * bool(run_flags & 0x100) + 4 * bool(run_flags & 0x200)
            if run_flags & 0x400:
                flags.append(struct.unpack(">I", data[position : position + 4])[0])
                position += 4
            else:
                flags.append(first if i == 0 and first is not None else default)
        at = run
    return [not flag & 0x10000 for flag in flags]


def test_a_fragment_is_these_bytes() -> None:
    samples = [container._Sample(7, 5, b"abc", True), container._Sample(12, 5, b"de", False)]
    expected = (
        "0000006c 6d6f6f66" "00000010 6d666864 00000000 00000003"
        "00000054 74726166"
        "00000018 74666864 00020028 00000001 00000005 01010000"
        "00000014 74666474 01000000 00000000 00000007"
        "00000020 7472756e 00000205 00000002 00000074 02000000 00000003 00000002"
        "0000000d 6d646174 6162636465"
    )  # fmt: skip
    assert container._fragment(3, [(1, samples)]).hex() == expected.replace(" ", "")


def test_seek_restarts_at_the_refresh_at_or_before(tmp_path: Path) -> None:
    write(tmp_path / "a.mcode", count=100, refresh_every=10)
    reader = McodeReader(tmp_path / "a.mcode")
    assert reader.refresh_times() == pytest.approx([i * 1.6 for i in range(10)])
    for seconds, expected in ((0, 0), (1.59, 0), (1.6, 1.6), (9.0, 8.0), (99, 14.4), (-1, 0)):
        assert reader.seek(seconds) == pytest.approx(expected)
        packets = list(reader)
        assert packets[0].header == HEADER and packets[0].pts == round(expected * TICKS_PER_S)
        assert len(packets) == 100 - round(expected / 0.16)


def test_a_file_whose_first_keyframes_lost_their_refresh_begins_at_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.mcode"
    write(path, count=30, refresh_every=10)
    data = bytearray(path.read_bytes())
    data[data.index(keyframe(0).to_sample(N))] &= 0xFE
    path.write_bytes(data)
    reader = McodeReader(path)
    for _ in range(2):
        assert [p.pts for p in reader] == [i * STEP for i in range(10, 30)] and reader.damaged == 10
        assert reader.seek(0.0) == pytest.approx(1.6)


def test_a_keyframe_alone_is_shown_for_a_frame_of_25(tmp_path: Path) -> None:
    write(tmp_path / "a.mcode", count=1)
    assert McodeReader(tmp_path / "a.mcode").duration_s == 0.04


def test_the_container_costs_four_bytes_a_keyframe(tmp_path: Path) -> None:
    """Refresh every 10 s, 25 frames/s, N = 4: 63 keyframes a fragment, 10 minutes."""
    writer = write(tmp_path / "a.mcode", count=3750, refresh_every=63)
    overhead = (tmp_path / "a.mcode").stat().st_size - writer.payload_bytes
    assert overhead < 1000 + 3750 * 6
    same_size = McodeWriter(tmp_path / "b.mcode")
    for i in range(3750):
        same_size.write(keyframe(0, pts=i * STEP), N)
    same_size.close()
    assert (tmp_path / "b.mcode").stat().st_size - same_size.payload_bytes < 1000 + 3750 * 5


# Cut short


def test_truncated_anywhere_the_whole_samples_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mcode"
    write(path, count=75, refresh_every=32)
    data = path.read_bytes()
    expected = pts_and_slices(keyframe(i, 32) for i in range(75))
    counts = set()
    for length in [*range(0, 1200, 7), *range(1200, len(data), 13), len(data) - 1]:
        path.write_bytes(data[:length])
        try:
            reader = McodeReader(path)
        except FormatError as error:
            assert ("nothing whole" if length >= 8 else "not an .mcode file") in str(error)
            counts.add(0)
            continue
        got = pts_and_slices(reader)
        assert got and got == expected[: len(got)]
        assert reader.truncated == f"{len(got) * STEP / TICKS_PER_S:.1f} of 12.0 s"
        counts.add(len(got))
    assert len(counts) > 60 and 74 in counts


def test_boxes_of_64_bits_and_up_to_the_end_of_the_file_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mcode"
    write(path, count=20)
    data = path.read_bytes()
    path.write_bytes(data + struct.pack(">I4sQ", 1, b"free", 30) + bytes(14))
    assert McodeReader(path).truncated is None
    path.write_bytes(data + struct.pack(">I4sQ", 1, b"mdat", 30) + bytes(13))
    assert McodeReader(path).truncated is not None
    path.write_bytes(data + struct.pack(">I4s", 0, b"free") + bytes(9))
    assert McodeReader(path).truncated is None and len(list(McodeReader(path))) == 20


def test_a_file_cut_within_its_sound_says_so(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=50, audio="aac")
    path = tmp_path / "a.mcode"
    write(path, count=12, audio_from=source)
    path.write_bytes(path.read_bytes()[:-100])
    reader = McodeReader(path)
    assert len(list(reader)) == 12 and "sound" in reader.truncated


def test_what_others_append_is_not_told_as_lost_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.mcode"
    write(path, count=12)
    whole = path.read_bytes()
    for appended in (b"appended by a stranger", b"\n", bytes(100)):
        path.write_bytes(whole + appended)
        reader = McodeReader(path)
        assert len(list(reader)) == 12 and reader.truncated is None
    path.write_bytes(whole + bytes(3))  # the beginning of a fragment
    assert "sound" in McodeReader(path).truncated


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    def error_of(path: Path, kind: type[Exception]) -> str:
        with pytest.raises(kind) as caught:
            McodeReader(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return str(caught.value)

    (tmp_path / "text.mcode").write_text("once upon a time\n" * 50)
    (tmp_path / "empty.mcode").touch()
    assert "no such file" in error_of(tmp_path / "none.mcode", InputError)
    assert "folder" in error_of(tmp_path, InputError)
    assert "not an .mcode file" in error_of(tmp_path / "text.mcode", FormatError)
    assert "not an .mcode file" in error_of(tmp_path / "empty.mcode", FormatError)
    (tmp_path / "annex-b.mcode").write_bytes(b"\0\0\0\1moov" + b"\xff" * 8)  # a start code is a box's 64-bit size, too
    assert "not an .mcode file" in error_of(tmp_path / "annex-b.mcode", FormatError)
    assert "not an .mcode file" in error_of(make_clip(tmp_path / "a.mp4", frames=2), FormatError)


def test_a_newer_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "FORMAT", 2)
    write(tmp_path / "a.mcode")
    monkeypatch.undo()
    with pytest.raises(FormatError, match="a.mcode: file format 2.*reads file format 1; install a newer MCode$"):
        McodeReader(tmp_path / "a.mcode")


def test_a_newer_format_is_named_by_the_samples_too(tmp_path: Path) -> None:
    path = tmp_path / "a.mcode"
    write(path)
    data = bytearray(path.read_bytes())
    data[data.index(keyframe(0).to_sample(N)) + 1] = 3
    path.write_bytes(data)
    with pytest.raises(FormatError, match="a.mcode: stream format 3.*reads stream formats 1 and 2"):
        McodeReader(path)


def test_a_damaged_sample_is_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.mcode"
    write(path, count=20)
    data = bytearray(path.read_bytes())
    data[data.index(keyframe(5).to_sample(N))] = 0xF8  # flags that format 1 does not have
    path.write_bytes(data)
    reader = McodeReader(path)
    assert [p.pts for p in reader] == [i * STEP for i in range(20) if i != 5]
    assert reader.damaged == 1


@pytest.mark.parametrize("size", [{"width": 65_535, "height": 65_535}, {"display_width": 30_000, "display_height": 30_000}])
def test_a_picture_beyond_the_largest_is_named_before_memory_is_taken_for_it(tmp_path: Path, size: dict[str, int]) -> None:
    with McodeWriter(tmp_path / "a.mcode") as writer:
        writer.write(replace(keyframe(0), header=replace(HEADER, **size)), N)
    with pytest.raises(FormatError, match="a.mcode: .* is more than 134 million pixels"):
        McodeReader(tmp_path / "a.mcode")


def test_a_sample_larger_than_its_picture_can_be_is_damage_and_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mcode"
    with McodeWriter(path) as writer:
        for index, size in enumerate((900_000, 1_200_000, 4 << 20, 100)):
            refresh = index != 2
            writer.write(replace(keyframe(index, 1 if refresh else 100), slices=(bytes(size),)), N)
    reader = McodeReader(path)
    assert [len(p.slices[0]) for p in reader] == [900_000, 100] and reader.damaged == 2
    wide = replace(HEADER, width=1024, height=1024)
    with McodeWriter(tmp_path / "b.mcode") as writer:
        writer.write(replace(keyframe(0), header=wide, slices=(bytes(4 << 20),)), N)
        writer.write(keyframe(1, 1), N)
        writer.write(replace(keyframe(2, 1), header=wide, slices=(bytes(4 << 20),)), N)
    assert [len(p.slices[0]) for p in McodeReader(tmp_path / "b.mcode")] == [4 << 20, 15, 4 << 20]


@pytest.mark.parametrize("start", [1 << 61, (1 << 63) - 1, (1 << 64) - 90_000])
def test_times_beyond_any_video_are_an_error_or_left_out(tmp_path: Path, start: int) -> None:
    path = tmp_path / "a.mcode"
    write(path, count=3)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdhd") + 4 + 4 + 8
    data[at : at + 4] = struct.pack(">I", 1)  # a timescale of seconds
    at = data.index(b"tfdt") + 8
    data[at : at + 8] = struct.pack(">Q", start)
    path.write_bytes(data)
    try:
        assert all(abs(packet.pts) < 1 << 62 for packet in McodeReader(path))
    except FormatError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("seed", range(30))
def test_damage_anywhere_is_a_clear_error_or_packets(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.mcode"
    write(path, count=20)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(seed)
    hit = rng.random(len(data)) < 0.01
    data[hit] = rng.integers(0, 256, int(hit.sum()))
    path.write_bytes(data.tobytes())
    try:
        assert len(list(McodeReader(path))) <= len(data)
    except FormatError as error:
        assert str(path) in str(error)


# Sound


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("aac", ".mp4"), ("aac", ".mkv"), ("aac", ".ts"), ("libmp3lame", ".mp4"), ("libopus", ".mkv"), ("flac", ".mkv"),
     ("ac3", ".mkv")],
)  # fmt: skip
def test_sound_is_copied_bit_for_bit_and_in_time(tmp_path: Path, codec: str, suffix: str) -> None:
    source = make_clip(tmp_path / f"a{suffix}", frames=150, audio=codec)
    write(tmp_path / "a.mcode", count=38, audio_from=source)
    same_in_time(heard(source), heard(tmp_path / "a.mcode"), coarse=suffix == ".mkv")
    with av.open(str(tmp_path / "a.mcode")) as mp4:
        assert [s.type for s in mp4.streams] == ["data", "audio"]
    assert len(list(McodeReader(tmp_path / "a.mcode"))) == 38


def same_in_time(a: np.ndarray, b: np.ndarray, coarse: bool) -> None:
    """The same samples; where the source counts milliseconds, its start is uncertain by 1 ms."""
    length, reach = min(len(a), len(b)), 48 if coarse else 0
    assert length > 5 * 48_000 and abs(len(a) - len(b)) <= 2048
    part = slice(1024 + reach if coarse else 0, length - reach)
    assert min(np.abs(a[part] - np.roll(b, s)[part]).max() for s in range(-reach, reach + 1)) < 1e-4


def test_sound_survives_the_way_from_mp4_to_mcode_to_mp4(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=150, audio="aac")
    write(tmp_path / "a.mcode", count=38, audio_from=source)
    with FrameWriter(tmp_path / "b.mp4", width=64, height=48, audio_from=tmp_path / "a.mcode") as writer:
        for frame in frames_of(150):
            writer.push(frame)
    same_in_time(heard(source), heard(tmp_path / "b.mp4"), coarse=False)


def test_sound_that_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", audio="aac")
    source.write_bytes(source.read_bytes().replace(b"esds", b"free"))  # what the decoder must know of the sound
    writer = write(tmp_path / "b.mcode", audio_from=source)
    assert McodeReader(tmp_path / "b.mcode").keyframes == 20
    assert writer.warnings == [f"the sound of {source} cannot be read: it is left out"]


@pytest.mark.parametrize("layout", ["stereo", "5.1"])
def test_pcm_whose_channels_have_no_names_is_copied(tmp_path: Path, layout: str) -> None:
    source = make_clip(tmp_path / "a.mkv", audio="pcm_s16le", layout=layout)
    writer = write(tmp_path / "b.mcode", audio_from=source)
    assert writer.warnings == [] and sound_of(tmp_path / "b.mcode") == sound_of(source)


def test_sound_of_impossible_times_is_left_out_with_a_warning(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.flv", frames=50, codec="flv", audio="libmp3lame")
    move_flv(source, 8, dict.fromkeys(range(20, 1000), 1e5))
    count = len(sound_of(source))
    writer = write(tmp_path / "b.mcode", audio_from=source)
    assert writer.warnings == [f"the sound of {source} is damaged: {count - 20} of its packets left out"]
    assert len(sound_of(tmp_path / "b.mcode")) == 20 and McodeReader(tmp_path / "b.mcode").keyframes == 20


def test_sound_is_cut_with_the_pictures(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=200, audio="aac")
    write(tmp_path / "a.mcode", count=13, audio_from=source, start_s=2.0, duration_s=2.08)
    expected, got = heard(source, picture_zero(source) + 2), heard(tmp_path / "a.mcode")
    assert 2.08 * 48_000 <= len(got) <= 2.08 * 48_000 + 1024
    assert np.abs(expected[1024 : len(got)] - got[1024:]).max() < 1e-4


def test_fragments_carry_sound_beside_its_pictures(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=750, width=16, height=16, audio="aac")
    write(tmp_path / "a.mcode", count=188, refresh_every=32, audio_from=source)
    with av.open(str(tmp_path / "a.mcode")) as mp4:
        times = {"data": -1.0, "audio": -1.0}
        apart = 0.0
        for packet in mp4.demux():
            if packet.size:
                times[packet.stream.type] = float(packet.pts * packet.time_base)
                apart = max(apart, abs(times["data"] - times["audio"]))
    assert apart < 6.5  # one fragment of 32 keyframes is 5.12 s
    assert (tmp_path / "a.mcode").read_bytes().count(b"moof") == 6


def test_sound_much_longer_than_the_pictures_is_kept_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MOST_FRAGMENT_BYTES", 10_000)
    source = make_clip(tmp_path / "a.mp4", frames=250, width=16, height=16, audio="aac")
    write(tmp_path / "a.mcode", count=1, audio_from=source)
    assert (tmp_path / "a.mcode").read_bytes().count(b"moof") >= 5
    same_in_time(heard(source), heard(tmp_path / "a.mcode"), coarse=False)


# Writing


def test_an_existing_file_stays_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "a.mcode").write_text("mine")
    with pytest.raises(InputError, match="--force"):
        McodeWriter(tmp_path / "a.mcode")
    assert (tmp_path / "a.mcode").read_text() == "mine"
    write(tmp_path / "a.mcode", force=True)
    assert len(McodeReader(tmp_path / "a.mcode")) == 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with McodeWriter(tmp_path / "a.mcode") as writer:
            writer.write(keyframe(0), N)
            assert len(os.listdir(tmp_path)) == 1 and not (tmp_path / "a.mcode").exists()
            raise error

    with pytest.raises(error):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_no_keyframe_is_an_error_not_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to write"):
        McodeWriter(tmp_path / "a.mcode").close()
    assert os.listdir(tmp_path) == []


def test_a_sound_source_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        McodeWriter(tmp_path / "a.mcode", audio_from=tmp_path / "none.mp4")
    assert os.listdir(tmp_path) == []


def test_misuse_raises_at_once(tmp_path: Path) -> None:
    writer = McodeWriter(tmp_path / "a.mcode")
    with pytest.raises(ValueError, match="starts with a refresh"):
        writer.write(keyframe(1), N)
    writer.write(keyframe(0), N)
    with pytest.raises(ValueError, match="increase"):
        writer.write(keyframe(0), N)
    writer.abort()


def test_a_leap_in_time_beyond_what_samples_can_tell_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "leap.mcode"
    with McodeWriter(path) as writer:
        writer.write(keyframe(0), N)
        writer.write(keyframe(1, pts=2**32 - 1), N)
    assert [packet.pts for packet in McodeReader(path)] == [0, 2**32 - 1]
    with pytest.raises(InputError, match=r"leaps by 13\.3 hours at second 0.*--start"), McodeWriter(path, force=True) as writer:
        writer.write(keyframe(0), N)
        writer.write(keyframe(1, pts=2**32), N)
    for n, remedy in ((2, "--duration, or use a smaller --n"), (1, "--duration$")):
        with pytest.raises(InputError, match=remedy):
            check_gap(path, 0, 2**32, n)
    assert [packet.pts for packet in McodeReader(path)] == [0, 2**32 - 1]  # the file from before stays


def test_a_pipe_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mcode")
    with pytest.raises(InputError, match="pipe.mcode is a pipe, and this cannot be written to one: name a file"):
        McodeWriter(tmp_path / "pipe.mcode")  # at once: nobody reads it
    write(Path("/dev/null"))


@pytest.mark.parametrize("limit", [0, 500, 3000])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(InputError, match="no space left on"):
            write(tmp_path / "a.mcode", count=400)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_killed_program_leaves_a_playable_file_under_its_temporary_name(tmp_path: Path) -> None:
    code = """
import sys, time
from tests.test_container import McodeWriter, N, keyframe
writer = McodeWriter(sys.argv[1])
for i in range(100):
    writer.write(keyframe(i, 32), N)
print("written", flush=True)
time.sleep(60)
"""
    root = Path(__file__).parent.parent
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "a.mcode"], stdout=subprocess.PIPE, cwd=root)
    assert child.stdout.readline() == b"written\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    (left,) = os.listdir(tmp_path)
    assert left == f"a.partial-{child.pid}.mcode"
    reader = McodeReader(tmp_path / left)
    assert pts_and_slices(reader) == pts_and_slices(keyframe(i, 32) for i in range(96))
    assert reader.truncated == "15.4 s, it was never finished"


def test_memory_stays_flat_over_ten_minutes_with_sound(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=300, width=16, height=16, audio="aac")
    code = """
import resource, sys
from tests.test_container import McodeWriter, N, keyframe
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with McodeWriter(sys.argv[1], audio_from=sys.argv[2]) as writer:
    for i in range(20000):
        writer.write(keyframe(i, 63, size=900), N)
        if i == 1000:
            early = peak()
print(peak() - early)
"""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", code, tmp_path / "a.mcode", source]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert int(done.stdout) < 3000  # KiB, where 17 MB were written


def test_reading_the_index_of_ten_minutes_is_quick(tmp_path: Path) -> None:
    write(tmp_path / "a.mcode", count=3750, refresh_every=63)
    start = time.perf_counter()
    assert len(McodeReader(tmp_path / "a.mcode")) == 3750
    assert time.perf_counter() - start < 2
