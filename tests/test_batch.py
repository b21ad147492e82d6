"""A library of videos: what is cut and joined is the whole, whoever encodes it when; what fails, is there or is stopped."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from mcode import batch, cli, codec, manifold
from mcode.batch import BatchReport, Done, Failure, Here, Segment, Settings, encode_files, outputs_of
from mcode.codec import Decoder
from mcode.container import McodeReader
from mcode.errors import InputError, ManifoldError, McodeError
from mcode.frame import TICKS_PER_S, Frame
from mcode.testclip import write_clip
from mcode.training.adapt import adapt_linear
from mcode.transcode import Encoded, EncodeReport, Measures, encode_file
from mcode.video import FrameReader, FrameWriter, audio_packets

from .clips import make_clip
from .small_hific import small_manifolds

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def settings(clip, tmp_path_factory) -> Settings:
    path = tmp_path_factory.mktemp("manifold") / "arms.safetensors"
    adapt_linear([clip], path, m=10, size=(48, 32))
    return Settings(str(path), device="cpu")


def encoded(settings: Settings, source: Path, output: Path, **options) -> EncodeReport:
    """As `mcode encode` does."""
    fields = {"n": settings.n, "coder": settings.coder, "device": "cpu"}
    return encode_file(source, output, manifold=settings.manifold, **fields, **options)


def batched(settings: Settings, source: Path, folder: Path, workers=None, **options) -> EncodeReport:
    """The report of one file."""
    (file,) = encode_files([source], folder, settings, workers or Here(settings), **options).files
    assert file.state == "encoded", file.error
    return file.report


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# Names


def test_a_tree_of_videos_becomes_the_same_tree(tmp_path):
    for name in ("lib/b/c.MP4", "lib/a.png", "lib/b/notes.txt", "lib/.trash/d.mp4", "lib/b/._c.mp4", "one/odd.name"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    lib, odd, out = tmp_path / "lib", tmp_path / "one/odd.name", Path("out")
    expected = [(lib / "a.png", out / "a.mcode"), (lib / "b/c.MP4", out / "b/c.mcode"), (odd, out / "odd.mcode")]
    assert outputs_of([lib, odd], out) == expected
    assert outputs_of([lib / "b", lib / "b/c.MP4"], out) == [(lib / "b/c.MP4", out / "c.mcode")]  # one file, given twice
    expected = [(lib / "b/c.MP4", out / "b/c.mcode"), (lib / "b/c.MP4", out / "c.mcode")]
    assert outputs_of([lib, lib / "b"], out)[1:] == expected


def test_linked_folders_are_left_out_and_told(settings, clip, tmp_path):
    for name in ("far", "lib/sub"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(clip, tmp_path / "far/b.mp4")
    for name in ("lib/link", "lib/sub/link", "lib/.hidden"):
        (tmp_path / name).symlink_to(tmp_path / "far")
    told = f"{tmp_path}/lib/link: linked folders are not searched, and 1 more; give them as inputs"
    with pytest.raises(InputError, match=f"lib: no video or picture in this folder itself; {told}$"):
        encode_files([tmp_path / "lib"], tmp_path / "out", settings, Here(settings))
    (tmp_path / "lib/a.mp4").symlink_to(clip)
    report = encode_files([tmp_path / "lib"], tmp_path / "out", settings, Here(settings))
    assert report.notes == (told,) and leftovers(tmp_path / "out") == ["a.mcode"]
    report = encode_files([tmp_path / "lib/link"], tmp_path / "out", settings, Here(settings))
    assert report.notes == () and leftovers(tmp_path / "out") == ["a.mcode", "b.mcode"]
    report = encode_files([tmp_path / "lib", tmp_path / "lib/link"], tmp_path / "both", settings, Here(settings))
    assert report.notes == () and leftovers(tmp_path / "both") == ["a.mcode", "b.mcode"]


def test_two_inputs_of_one_output_are_refused_before_anything_is_done(settings, clip, tmp_path):
    for name in ("a/x.mp4", "b/x.mov"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(clip, tmp_path / name)
    with pytest.raises(InputError, match=r"a/x.mp4 and .*b/x.mov would both become .*out/x.mcode: rename one"):
        encode_files([tmp_path / "a", tmp_path / "b"], tmp_path / "out", settings, Here(settings))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_a_batch_is_one_line(settings, clip, tmp_path):
    (tmp_path / "empty").mkdir()
    for inputs, folder, message in [
        ([tmp_path / "empty"], tmp_path / "out", "empty: no video or picture in this folder"),
        ([clip], clip, "clip.mp4 is a file: name a folder"),
        ([""], tmp_path / "out", "no input given"),
        ([clip], "", "no output folder given"),
    ]:
        with pytest.raises(InputError, match=message):
            encode_files(inputs, folder, settings, Here(settings))
    with pytest.raises(InputError, match="1 second or longer"):
        encode_files([clip], tmp_path / "out", settings, Here(settings), segment_s=0.5)
    for bad, error, message in [
        (replace(settings, quality=9), ManifoldError, "quality 9 is outside"),
        (replace(settings, coder="range"), InputError, "has no hyperprior"),
        (replace(settings, manifold="nowhere"), ManifoldError, "nowhere"),
    ]:
        with pytest.raises(error, match=message):
            encode_files([clip], tmp_path / "out", bad, Here(bad))
    for field in ({"audio": "yes"}, {"size": (0, 9)}, {"size": 64}, {"refresh_s": -1.0}):
        with pytest.raises(McodeError, match="audio|size|refresh"):
            encode_files([clip], tmp_path / "out", replace(settings, **field), Here(settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("audio", [True, False, "copy", "none"])
def test_sound_is_kept_as_encode_keeps_it(settings, tmp_path, audio):
    source = make_clip(tmp_path / "a.mp4", audio="aac")
    batched(replace(settings, audio=audio), source, tmp_path / "out")
    encoded(settings, source, tmp_path / "alone.mcode", audio=audio)
    assert (tmp_path / "out/a.mcode").read_bytes() == (tmp_path / "alone.mcode").read_bytes()


# Segments


def test_a_video_shorter_than_a_segment_becomes_what_encode_makes_of_it(settings, clip, tmp_path):
    alone = encoded(settings, clip, tmp_path / "clip.mcode")
    report = batched(settings, clip, tmp_path / "out")
    assert (tmp_path / "out/clip.mcode").read_bytes() == (tmp_path / "clip.mcode").read_bytes()
    assert replace(report, encode_fps=0) == replace(alone, encode_fps=0)


def test_a_picture_becomes_what_encode_makes_of_it(settings, tmp_path):
    picture = make_clip(tmp_path / "a.png", frames=1, codec="png", pixel_format="rgb24")
    alone = encoded(settings, picture, tmp_path / "alone.mcode")
    report = batched(settings, picture, tmp_path / "out", segment_s=1)
    assert (tmp_path / "out/a.mcode").read_bytes() == (tmp_path / "alone.mcode").read_bytes()
    assert replace(report, encode_fps=0) == replace(alone, encode_fps=0) and report.n == 1


GAPS = [1500, 3000, 3600, 3600, 7200, 45_000]


@pytest.fixture(scope="module", params=["even.mp4", "uneven.mp4", "uneven.mkv", "late.ts", "far.ts"])
def source(request, tmp_path_factory) -> Path:
    """100 frames, with sound."""
    name = request.param
    ticks = list(accumulate(GAPS[i * i % 6] for i in range(100))) if name.startswith("uneven") else None
    start = {"output_ts_offset": "9000"} if name == "late.ts" else {}
    path = tmp_path_factory.mktemp("source") / name
    options = {"g": "90" if name == "far.ts" else "25"}
    return make_clip(path, frames=100, options=options, ticks=ticks, audio="aac", container_options=start)


def test_segments_together_are_the_whole_video(settings, source, tmp_path):
    report = batched(settings, source, tmp_path, segment_s=1.3, force=True)
    alone = encoded(settings, source, tmp_path / "alone.mcode")
    path = tmp_path / f"{source.stem}.mcode"
    whole = list(FrameReader(source))
    reader, decoder = McodeReader(path), Decoder(manifold.load(settings.manifold, "cpu"))
    shown = [frame.pts for packet in reader for frame in decoder.push(packet)]
    assert len(shown) == len(whole) == report.frames == 100
    assert np.abs(np.subtract(shown, [frame.pts for frame in whole])).max() <= TICKS_PER_S // 1000  # as encode: evened out
    cuts = np.arange(0, whole[-1].pts / TICKS_PER_S, 1.3)
    starts = {min(frame.pts for frame in whole if frame.pts >= cut * TICKS_PER_S) / TICKS_PER_S for cut in cuts}
    assert len(starts) > 2 and starts <= set(reader.refresh_times())
    assert report.duration_s == alone.duration_s and reader.end_ticks == McodeReader(tmp_path / "alone.mcode").end_ticks
    sounds = [[bytes(packet) for packet in audio_packets(file)] for file in (path, tmp_path / "alone.mcode")]
    assert sounds[0] == sounds[1] and len(sounds[0]) > 100
    assert report.psnr_db == pytest.approx(alone.psnr_db, abs=0.5) and report.fit == pytest.approx(alone.fit, abs=0.05)


def test_a_width_whose_rows_are_padded_in_memory_is_cut_as_any_other(tmp_path):
    source = make_clip(tmp_path / "a.mp4", frames=50, width=58, options={"g": "25"})
    assert not next(iter(FrameReader(source))).rgb.flags.c_contiguous
    any_size, _ = small_manifolds(tmp_path)
    report = batched(Settings(str(any_size), device="cpu"), source, tmp_path, segment_s=1)
    assert report.frames == 50 and McodeReader(tmp_path / "a.mcode").refresh_times() == [0, 1]


def test_the_measures_of_segments_are_those_of_the_file(settings, clip, tmp_path):
    report = batched(settings, clip, tmp_path, segment_s=1)
    model = manifold.load(settings.manifold, "cpu")
    fed, decoder, errors = iter(FrameReader(clip, size=(48, 32), crop_to=(48, 32))), Decoder(model), []
    for packet in McodeReader(tmp_path / "clip.mcode"):
        for frame in decoder.push(packet):
            errors.append(np.mean((next(fed).rgb.astype(float) - frame.rgb) ** 2))
    assert len(errors) == 50
    assert report.psnr_db == pytest.approx(np.mean(10 * np.log10(255**2 / np.array(errors))))


class Shuffled(Here):
    """Gives everything back in another order than it was asked for, as processes of different speed do."""

    def run(self, queue: deque[Segment]) -> Done:
        while queue:
            done = list(super().run(deque(queue.popleft() for _ in range(len(queue)))))
            random.Random(5).shuffle(done)
            yield from done


def test_the_order_in_which_segments_are_done_does_not_matter(settings, source, tmp_path):
    one = batched(settings, source, tmp_path / "one", segment_s=1)
    two = batched(settings, source, tmp_path / "two", Shuffled(settings), segment_s=1)
    name = f"{source.stem}.mcode"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert replace(one, encode_fps=0) == replace(two, encode_fps=0)


def test_a_pause_longer_than_segments_leaves_empty_ones(settings, tmp_path):
    source = tmp_path / "pause.mp4"
    with FrameWriter(source, width=64, height=48) as writer:
        for number, pts in enumerate([0, 3600, 7200, 900_000, 903_600, 1_800_000]):
            writer.push(Frame(np.full((48, 64, 3), 30 * number, np.uint8), pts))
        writer.close(90_000)
    report = batched(settings, source, tmp_path, segment_s=1)
    assert (report.frames, report.duration_s) == (6, 21)
    assert [t for t in McodeReader(tmp_path / "pause.mcode").refresh_times() if t == round(t)] == [0, 10, 20]


def test_a_video_cut_off_is_encoded_as_far_as_encode_does_and_warned_of(settings, tmp_path):
    source = make_clip(tmp_path / "a.mkv", frames=100, options={"g": "12"})
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 6 // 10])
    alone = encoded(settings, source, tmp_path / "alone.mcode")
    report = batched(settings, source, tmp_path, segment_s=1)
    assert 40 < report.frames == alone.frames < 90
    assert report.warnings[0] == alone.warnings[0] and "is cut off: encoded " in report.warnings[0]
    assert report.duration_s == alone.duration_s


@pytest.mark.parametrize("wrong", ["picture", "time", "none"])
def test_where_a_seek_does_not_show_the_same_frame_the_video_is_encoded_in_one_piece(
    settings, clip, tmp_path, monkeypatch, wrong
):
    since = FrameReader.since

    def lies(self: FrameReader, first: int) -> Iterator[Frame]:
        for number, frame in enumerate(since(self, first)):
            if first and not number and wrong == "none":
                continue
            grey = np.full_like(frame.rgb, 127)
            late = first and not number and wrong == "time"
            yield Frame(grey if first and not number and wrong == "picture" else frame.rgb, frame.pts + bool(late))

    monkeypatch.setattr(FrameReader, "since", lies)
    seen: list[tuple[int, int | None]] = []
    report = batched(settings, clip, tmp_path / "out", segment_s=1, progress=lambda done, total: seen.append((done, total)))
    encoded(settings, clip, tmp_path / "alone.mcode")
    assert (tmp_path / "out/clip.mcode").read_bytes() == (tmp_path / "alone.mcode").read_bytes()
    assert report.frames == 50 and seen[-1] == (50, 50) and leftovers(tmp_path / "out") == ["clip.mcode"]


def set_clock(data: bytearray, moved: Callable[[int], int]) -> bytes:
    """An MPEG-TS file of one stream with other times. moved: the ticks to add to those of a picture, by its number."""
    number = -1
    for packet in range(0, len(data), 188):
        start = packet + 4 + (1 + data[packet + 4] if data[packet + 3] & 0x20 else 0)
        if not data[packet + 1] & 0x40 or data[start : start + 4] != b"\0\0\1\xe0":  # the first packet of a picture
            continue
        number += 1
        for at in range(start + 9, start + 9 + data[start + 8], 5):
            a, b, c = data[at], int.from_bytes(data[at + 1 : at + 3]), int.from_bytes(data[at + 3 : at + 5])
            ticks = (a >> 1 & 7) << 30 | b >> 1 << 15 | c >> 1
            ticks += moved(number)
            data[at] = a & 0xF1 | ticks >> 30 << 1
            data[at + 1 : at + 3] = (ticks >> 15 << 1 & 0xFFFF | 1).to_bytes(2)
            data[at + 3 : at + 5] = (ticks << 1 & 0xFFFF | 1).to_bytes(2)
    return bytes(data)


@pytest.mark.parametrize("wrong", ["back", "far", "near", "damage"])
def test_where_the_clock_runs_backwards_or_bytes_are_damaged_the_video_is_encoded_in_one_piece(settings, tmp_path, wrong):
    source = make_clip(tmp_path / "a.ts", frames=250, options={"g": "10"})
    data = bytearray(source.read_bytes())
    if wrong == "damage":
        slices = [found.end() for found in re.finditer(b"\x00\x00\x01\x41", data)]
        for at in slices[len(slices) // 2 :][:3]:
            data[at : at + 2] = b"\x01\x01"  # it would begin with the picture's macroblock 128 and more, of 12
    moved = {
        "back": lambda i: -180_000 * (i >= 125),
        "far": lambda i: 90_000_000 * (i == 99),
        "near": lambda i: 270_000 * (i == 99),
    }
    source.write_bytes(set_clock(data, moved[wrong]) if wrong in moved else data)
    reader = FrameReader(source)
    deque(reader, maxlen=0)
    assert reader.damaged == 3 if wrong == "damage" else reader.runs_backwards or wrong in ("far", "near")
    alone = encoded(settings, source, tmp_path / "alone.mcode")
    report = batched(settings, source, tmp_path / "out", segment_s=1)
    assert report.frames == alone.frames and (alone.frames == 250 or wrong == "damage")
    assert (tmp_path / "out/a.mcode").read_bytes() == (tmp_path / "alone.mcode").read_bytes()


def test_what_cannot_be_seeked_is_one_segment(settings, tmp_path):
    make_clip(tmp_path / "one.ts", frames=50)
    (tmp_path / "a.ts").write_bytes(2 * (tmp_path / "one.ts").read_bytes())
    for source in (make_clip(tmp_path / "a.h264", frames=50), tmp_path / "a.ts"):
        batched(settings, source, tmp_path / "out", segment_s=1, force=True)
        encoded(settings, source, tmp_path / "alone.mcode", force=True)
        assert (tmp_path / "out/a.mcode").read_bytes() == (tmp_path / "alone.mcode").read_bytes()


def test_sums_of_parts_keep_the_gap_between_them():
    part = Encoded(5, 14_400, 3600, None, Measures(5.0, 1.0, 2.0, 5), None, 0, 0, False, 4, "huffman", 1, 16, 8)
    one = replace(part, frames=1, last_pts=20_000, gap=None, measures=Measures(1.0, 1.0, 1.0, 1))
    nothing = replace(part, frames=0, last_pts=0, gap=None, measures=Measures(), shown=3, truncated="0.0 of 3.0 s")
    assert part + one == replace(one, frames=6, gap=5600, measures=Measures(6.0, 2.0, 3.0, 6))
    assert part + nothing == part and nothing + part == part
    assert (part + one).last_ticks == 5600 and one.last_ticks == 3600 and replace(one, shown=9).last_ticks == 9


# What fails, is there, or is stopped


def test_one_bad_input_does_not_stop_the_others(settings, clip, tmp_path):
    lib = tmp_path / "lib"
    lib.mkdir()
    for name in ("a.mp4", "c.mp4"):
        shutil.copy(clip, lib / name)
    (lib / "b.mp4").write_text("no video")
    told: list[str] = []
    report = encode_files(
        [lib, tmp_path / "gone.mp4"], tmp_path / "out", settings, Here(settings), tell=lambda f: told.append(f.state)
    )
    assert [file.state for file in report.files] == ["encoded", "failed", "encoded", "failed"]
    assert report.files[1].error == f"{lib}/b.mp4 is not a video or image"
    assert report.files[3].error == f"{tmp_path}/gone.mp4: no such file"
    assert leftovers(tmp_path / "out") == ["a.mcode", "c.mcode"] and sorted(told) == sorted(f.state for f in report.files)
    assert [report.count(state) for state in ("encoded", "skipped", "failed")] == [2, 0, 2]


def test_a_fault_in_writing_fails_its_file_alone(settings, clip, tmp_path, monkeypatch):
    shutil.copy(clip, tmp_path / "a.mp4")
    close = batch.McodeWriter.close

    def faulty(self, *args):
        if self.path.name == "a.mcode":
            raise ZeroDivisionError("division by zero")
        close(self, *args)

    monkeypatch.setattr(batch.McodeWriter, "close", faulty)
    first, second = encode_files([tmp_path / "a.mp4", clip], tmp_path / "out", settings, Here(settings)).files
    assert first.error == f"{tmp_path}/a.mp4: a fault in mcode: ZeroDivisionError: division by zero" and "faulty" in first.trace
    assert second.state == "encoded" and leftovers(tmp_path / "out") == ["clip.mcode"]


@pytest.mark.parametrize("adaptive", [False, True])
def test_segments_of_adaptive_keyframes_show_every_frame(settings, tmp_path, monkeypatch, adaptive):
    monkeypatch.setattr(codec, "BEND", 0.0)
    source = make_clip(tmp_path / "a.mp4", frames=75, options={"g": "25"})
    report = batched(replace(settings, n=8, adaptive=adaptive), source, tmp_path / "out", segment_s=1)
    decoder = Decoder(manifold.load(settings.manifold, "cpu"))
    packets = list(McodeReader(tmp_path / "out/a.mcode"))
    assert len([frame for packet in packets for frame in decoder.push(packet)]) == report.frames == 75
    assert (len(packets) > 60) == adaptive  # nothing moves on a line


def test_segments_keep_to_a_rate_and_where_they_cannot_one_is_told(settings, tmp_path):
    source = tmp_path / "a.mp4"
    write_clip(source, scene="arms", seconds=12, size=(96, 64), seed=1)

    def report(**options):
        return batched(replace(settings, **options), source, tmp_path / "out", segment_s=4, force=True)

    every = report(n=1).rate_kbps
    kept, over = report(n=50, rate_kbps=0.4 * every), report(n=1, rate_kbps=0.4 * every)
    assert kept.rate_kbps == pytest.approx(0.4 * every, rel=0.05) and not kept.warnings
    assert over.rate_kbps == every and f"--rate {0.4 * every:g}: it took" in over.warnings[0]


def test_where_all_fail_no_folder_is_made(settings, tmp_path):
    for folder, stays in (("new", False), ("old", True)):
        (tmp_path / "old").mkdir(exist_ok=True)
        report = encode_files([tmp_path / "gone.mp4"], tmp_path / folder, settings, Here(settings))
        assert report.count("failed") == 1 and (tmp_path / folder).exists() == stays


def test_one_input_may_have_two_outputs(settings, clip, tmp_path):
    (tmp_path / "lib/b").mkdir(parents=True)
    shutil.copy(clip, tmp_path / "lib/b/a.mp4")
    report = encode_files([tmp_path / "lib", tmp_path / "lib/b"], tmp_path / "out", settings, Here(settings), segment_s=1)
    assert [file.state for file in report.files] == ["encoded", "encoded"]
    assert (tmp_path / "out/a.mcode").read_bytes() == (tmp_path / "out/b/a.mcode").read_bytes()


def test_outputs_that_exist_are_left_alone_unless_forced(settings, clip, tmp_path):
    (tmp_path / "clip.mcode").write_text("mine")
    (file,) = encode_files([clip], tmp_path, settings, Here(settings)).files
    assert (file.state, file.report) == ("skipped", None) and (tmp_path / "clip.mcode").read_text() == "mine"
    assert batched(settings, clip, tmp_path, force=True).frames == 50
    (tmp_path / "clip.mcode").unlink()
    (tmp_path / "clip.mcode").mkdir()
    (file,) = encode_files([clip], tmp_path, settings, Here(settings), force=True).files
    assert file.state == "failed" and "clip.mcode is a folder" in file.error


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused_at_once(settings, clip, tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    with pytest.raises(InputError, match="out: not allowed to write into this folder"):
        encode_files([clip], tmp_path / "out", settings, Here(settings))


def test_an_output_that_cannot_be_written_fails_its_file_alone(settings, clip, tmp_path):
    (tmp_path / "lib/sub").mkdir(parents=True)
    for name in ("lib/a.mp4", "lib/sub/b.mp4"):
        shutil.copy(clip, tmp_path / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").write_text("a file where a folder must be")
    report = encode_files([tmp_path / "lib"], tmp_path / "out", settings, Here(settings))
    assert [file.state for file in report.files] == ["encoded", "failed"]
    assert report.files[1].error == f"{tmp_path}/out/sub: File exists"
    assert leftovers(tmp_path / "out") == ["a.mcode", "sub"]


class FailsAt(Here):
    """A segment that does not become a part. number: which."""

    def __init__(self, settings: Settings, number: int) -> None:
        super().__init__(settings)
        self._number, self.asked = number, []

    def run(self, queue: deque[Segment]) -> Done:
        for segment, part in super().run(queue):
            self.asked.append((segment.input.name, segment.number))
            bad = segment.input.name == "a.mp4" and segment.number == self._number
            yield segment, Failure("its worker process died") if bad else part


def test_a_segment_that_fails_fails_its_file_alone_and_the_rest_of_it_is_not_encoded(settings, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        make_clip(tmp_path / name, frames=100)
    workers = FailsAt(settings, 1)
    report = encode_files([tmp_path / "a.mp4", tmp_path / "b.mp4"], tmp_path / "out", settings, workers, segment_s=1)
    assert [(file.state, file.error) for file in report.files] == [("failed", "its worker process died"), ("encoded", None)]
    assert workers.asked == [("a.mp4", 0), ("a.mp4", 1), *(("b.mp4", i) for i in range(4))]
    assert leftovers(tmp_path / "out") == ["b.mcode"]


def test_what_stops_the_run_leaves_nothing_half_written(settings, clip, tmp_path):
    class Stopped(Here):
        def run(self, queue: deque[Segment]) -> Done:
            yield next(super().run(queue))
            assert leftovers(tmp_path / "out") != []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_files([clip], tmp_path / "out", settings, Stopped(settings), segment_s=1)
    assert leftovers(tmp_path / "out") == []


def test_a_fault_of_mcode_in_a_worker_is_shown_with_its_trace(settings, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(FrameReader, "since", lambda self, first: 1 // 0)
    (file,) = encode_files([clip], tmp_path, settings, Here(settings)).files
    assert file.error == f"{clip}: a fault in mcode: ZeroDivisionError: integer division or modulo by zero"
    assert file.trace.startswith("Traceback")


# The command


@pytest.fixture
def command(monkeypatch, capsys, settings):
    """`mcode batch` with this process for all workers."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(batch, "RayWorkers", lambda settings, count, cluster: nullcontext(Here(settings)))
        status = cli.main(["batch", "-m", settings.manifold, "--device", "cpu", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_the_command_prints_a_table_and_errors_and_ends_with_2(command, clip, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    status, out, err = command(clip, tmp_path / "bad.mp4", "-o", tmp_path / "out", "--segment", "1")
    assert (status, err) == (2, f"mcode: error: {tmp_path}/bad.mp4 is not a video or image\n")
    head, good, bad = out.splitlines()
    assert head.split() == ["file", "frames", "rate", "PSNR", "fit", "state"]
    assert good.split()[:2] == [f"{tmp_path}/out/clip.mcode", "50"] and good.endswith("encoded") and bad.endswith("failed")


def test_the_command_prints_one_json_object(command, clip, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    assert command(clip, "-o", tmp_path / "out")[0] == 0
    other = shutil.copy(clip, tmp_path / "other.mp4")
    status, out, _ = command(clip, other, tmp_path / "bad.mp4", "-o", tmp_path / "out", "--json", "--n", "8")
    found = json.loads(out)
    assert status == 2 and {key: found[key] for key in ("encoded", "skipped", "failed")} == dict.fromkeys(
        ("encoded", "skipped", "failed"), 1
    )
    assert [file["state"] for file in found["files"]] == ["skipped", "encoded", "failed"] and found["seconds"] > 0
    assert found["files"][1].keys() == {"input", "output", "state", "error", *EncodeReport.__dataclass_fields__}
    assert (found["files"][1]["n"], found["files"][1]["frames"]) == (8, 50)
    assert found["files"][2]["error"] == f"{tmp_path}/bad.mp4 is not a video or image"


def test_a_warning_says_of_which_file_it_is(command, settings, tmp_path):
    source = make_clip(tmp_path / "strange.mp4")
    status, _, err = command(source, "-o", tmp_path / "out")
    assert status == 0 and err.startswith(f"mcode: warning: {source}: fit 0.") and "does not suit this footage" in err


def test_what_is_left_out_is_warned_of(command, clip, tmp_path):
    (tmp_path / "lib").mkdir()
    shutil.copy(clip, tmp_path / "lib/a.mp4")
    (tmp_path / "lib/link").symlink_to(tmp_path)
    status, _, err = command(tmp_path / "lib", "-o", tmp_path / "out", "--json")
    assert (status, err) == (
        0,
        f"mcode: warning: {tmp_path}/lib/link: linked folders are not searched; give them as inputs\n",
    )


def test_every_option_arrives(monkeypatch, capsys, tmp_path):
    seen = {}

    def workers(settings, count, cluster):
        seen.update(settings=settings, count=count, cluster=cluster)
        return nullcontext()

    def run(inputs, folder, settings, workers, **options):
        seen.update(inputs=inputs, folder=folder, given=settings, options=options)
        return BatchReport((), 0.0)

    monkeypatch.setattr(batch, "RayWorkers", workers)
    monkeypatch.setattr(batch, "encode_files", run)
    options = "--n 8 -m me --coder fixed --quality 3 --refresh 2.5 --device cpu --size 64x48 --audio none"
    options += " --adaptive --rate 2.5"
    more = "--refine 7 --refine-by vgg19 --perceptual W --segment 1:30 --workers 3 --cluster head:6379 --force --json"
    assert cli.main(["batch", "a", "b", "-o", "out", *options.split(), *more.split()]) == 0
    expected = Settings("me", 8, "fixed", 3, 2.5, "cpu", (64, 48), "none", 7, "vgg19", "W", True, 2.5)
    assert seen["settings"] == seen["given"] == expected and (seen["count"], seen["cluster"]) == (3, "head:6379")
    assert (seen["inputs"], seen["folder"]) == (["a", "b"], "out")
    assert seen["options"]["segment_s"] == 90 and seen["options"]["force"]
    assert cli.main(["batch", "a", "-o", "out"]) == 0
    assert seen["settings"] == Settings() and (seen["count"], seen["cluster"]) == (None, None)
    assert seen["options"]["segment_s"] == 60 and not seen["options"]["force"]


# Ray


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra cluster)")
def test_batches_by_ray():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/by_ray.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
