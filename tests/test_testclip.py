"""The rendered clip: the same for the same seed, at any size, with sound that moves the mouth."""

from __future__ import annotations

import itertools
import sys

import av
import numpy as np
import pytest

from mcode.errors import InputError
from mcode.testclip import RATE, SCENES, render_audio, render_frames, write_clip


@pytest.mark.parametrize("scene", SCENES)
def test_frames_have_the_size_rate_and_number_asked_for(scene):
    frames = list(render_frames(scene, 0.5, 12, (64, 48), 0))
    assert [f.rgb.shape for f in frames] == [(48, 64, 3)] * 6
    assert [f.pts for f in frames] == [i * 7500 for i in range(6)]


def test_same_seed_same_pixels_and_another_seed_others():
    def first(seed):
        return next(render_frames("face", 1, 25, (64, 48), seed)).rgb

    assert np.array_equal(first(3), first(3))
    assert not np.array_equal(first(3), first(4))


def test_every_scene_moves():
    for scene in ("arms", "face", "pan"):
        first, *_, last = render_frames(scene, 1.0, 5, (64, 48), 0)
        assert np.abs(first.rgb.astype(int) - last.rgb).mean() > 0.5


def test_demo_is_the_three_scenes_in_a_row():
    frames = [f.rgb.astype(int) for f in render_frames("demo", 1.2, 10, (64, 48), 0)]
    jumps = [np.abs(a - b).mean() for a, b in itertools.pairwise(frames)]
    assert sorted(np.argsort(jumps)[-2:].tolist()) == [3, 7]


def test_sound_is_as_long_as_the_picture_and_audible():
    sound = render_audio("face", 1.5, 0)
    assert sound.shape == (round(1.5 * RATE),) and sound.dtype == np.int16
    assert 500 < np.abs(sound.astype(int)).mean() < 12_000
    assert not np.array_equal(sound, render_audio("pan", 1.5, 0))


def test_written_clip_holds_picture_and_sound(clip):
    with av.open(str(clip)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height, float(video.average_rate)) == (96, 64, 25.0)
        assert sum(1 for _ in container.decode(video)) == 50
        assert abs(float(audio.duration * audio.time_base) - 2) < 0.1


def test_an_existing_file_is_kept_without_force(tmp_path):
    path = tmp_path / "kept.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="--force"):
        write_clip(path, seconds=0.2, size=(32, 32))
    assert path.read_bytes() == b"mine"


def test_a_place_that_cannot_be_written_is_named_before_rendering(tmp_path, monkeypatch):
    monkeypatch.setattr("mcode.testclip.render_audio", None)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match=r"folder\.mp4 is a folder: name a file"):
        write_clip(tmp_path / "folder.mp4", seconds=0.2, size=(32, 32), force=True)
    with pytest.raises(InputError, match=r"nowhere: no such folder to write to"):
        write_clip(tmp_path / "nowhere" / "x.mp4", seconds=0.2, size=(32, 32))


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size")
@pytest.mark.parametrize("most_bytes", [0, 1000, 4000])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_full_disk_is_told_of_the_file_asked_for_and_leaves_none(suffix, most_bytes, tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        with pytest.raises(InputError, match=rf"no space left on .* for x\.{suffix}$"):
            write_clip(tmp_path / f"x.{suffix}", seconds=0.2, size=(64, 48))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scene": "opera"}, "opera"),
        ({"size": (4, 4)}, "4x4"),
        ({"size": (17, 65535)}, "size 17x65535: a clip has at most 16384 pixels a side"),
        ({"size": (16385, 16)}, "size 16385x16: a clip has at most 16384 pixels a side"),
        ({"size": (8192, 8193)}, "size 8192x8193: .* 67 million in all"),
        ({"seconds": 1e12}, r"1e\+12 seconds: a clip is at most 600 s long"),
    ],
)
def test_unusable_options_are_named_before_anything_is_made(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr("mcode.testclip.render_audio", None)
    with pytest.raises(InputError, match=message):
        write_clip(tmp_path / "x.mp4", **({"seconds": 0.2} | options))
    with pytest.raises(InputError, match=message):
        next(render_frames(**({"seconds": 0.2} | options)))
    assert not list(tmp_path.iterdir())
