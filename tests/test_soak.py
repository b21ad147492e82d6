"""A live stream that goes on for long, over real datagrams that are lost and damaged: no crash, no growth, no drift."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

import pytest

from mcode.channel import ChannelSettings
from mcode.send import SendConfig
from mcode.testclip import write_clip

from .block_means import BlockMeans

SCRIPT = Path(__file__).parent.parent / "scripts" / "soak.py"
NOISE = ChannelSettings(bit_error_rate=1e-3, loss=0.05, seed=2)


@pytest.fixture(scope="module")
def soak_script():
    spec = importlib.util.spec_from_file_location("soak_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak_script"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def talking_clip(tmp_path_factory):
    """Three seconds of a face that talks: 64x48, with sound."""
    path = tmp_path_factory.mktemp("soak") / "face.mp4"
    write_clip(path, scene="face", seconds=3, size=(64, 48), seed=1)
    return path


def soaked(script, clip, port, seconds, **options):
    config = SendConfig(str(clip), to=f"rtp://127.0.0.1:{port}", baseline="h264", channel=NOISE, loop=True)
    done = script.soak(config, seconds, model=BlockMeans(), **options)
    assert done.problems == [] and done.growth_mb < script.MOST_GROWTH_MB
    assert done.drift_ms is not None and abs(done.drift_ms) < script.MOST_DRIFT_MS
    assert sum(sample.shown["mcode"] for sample in done.samples) > 3 * seconds
    assert done.receiver["mcode"]["lost"] > 0 and done.receiver["mcode"]["damaged"] > 0
    assert not [t.name for t in threading.enumerate() if t.name.startswith("mcode-")]
    return done


def test_some_seconds_of_loss_and_noise_neither_grow_nor_drift(soak_script, talking_clip, port):
    done = soaked(soak_script, talking_clip, port, 7.0, sample_s=2.0)
    assert len(done.samples) >= 3 and done.sender["frames"] > 40


@pytest.mark.slow
def test_a_minute_of_loss_and_noise_neither_grows_nor_drifts(soak_script, talking_clip, port):
    done = soaked(soak_script, talking_clip, port, 60.0, sample_s=5.0)
    assert done.receiver["mcode"]["refresh_requests"] > 0


def test_a_sender_that_ends_is_a_problem_with_its_words(soak_script, talking_clip, port):
    config = SendConfig(str(talking_clip), to=f"rtp://127.0.0.1:{port}", baseline="none", duration_s=0.4)
    done = soak_script.soak(config, 5.0, model=BlockMeans(), sample_s=1.0)
    assert any("the sender ended" in problem for problem in done.problems)
