"""The networks' process gives what the manifold itself gives; whoever dies, window or worker, the other goes on or ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import player.networks
from mcode.codec import Decoder, Encoder
from mcode.manifold import load
from player.demo import prepare
from player.networks import Networks, NetworksError
from player.session import Settings
from player.sources import open_source
from tests.block_means import BlockMeans, grey
from tests.test_player_sessions import PATIENCE_S, wait_until

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are ended otherwise on this system")


@pytest.fixture(scope="module")
def manifold():
    return load(prepare().manifold)


@pytest.fixture
def told():
    return []


@pytest.fixture
def networks(told):
    made = Networks(told.append, jobs=2)
    yield made
    made.close()


@pytest.fixture
def picture():
    rows, columns = np.mgrid[:128, :128]
    return np.stack([rows * 2, columns * 2, rows + columns], axis=-1).astype(np.uint8)


def lives(pid: int) -> bool:
    """Whether a process runs: neither gone nor waiting to be asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ends(pid: int) -> bool:
    end_s = time.monotonic() + PATIENCE_S
    while lives(pid) and time.monotonic() < end_s:
        time.sleep(0.02)
    return not lives(pid)


def names_in_shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return {path.name for path in folder.glob("mcode-*")} if folder.is_dir() else set()


def test_worker_gives_what_the_manifold_gives(manifold, networks, picture, monkeypatch):
    monkeypatch.setattr(player.networks, "JOB_PIXELS", 1)  # each picture is a job
    remote = networks.wrap(manifold)
    assert networks.pid not in (None, os.getpid())
    latents = remote.analyse(picture[None])
    # Its process has one thread, this one may have more, which sum in another order.
    torch.testing.assert_close(latents, manifold.analyse(picture[None]), rtol=1e-5, atol=1e-3)
    several = torch.cat([latents * share for share in (0.0, 0.3, 0.6, 0.8, 1.0)])
    found = list(remote.synthesise(several, 128, 128))
    for one, expected in zip(found, manifold.synthesise(several, 128, 128), strict=True):
        assert np.abs(one.astype(int) - expected).max() <= 1  # a batch of five may round otherwise than one
    assert (remote.id, remote.name, remote.latent_shape(128, 128)) == (manifold.id, manifold.name, (48, 1, 1))


def test_codec_runs_on_a_wrapped_manifold(manifold, networks):
    remote = networks.wrap(manifold)
    encoder, decoder = Encoder(remote, 128, 128, n=3), Decoder(remote)
    frames = [grey(100 + i, i, 128, 128) for i in range(7)]
    packets = [packet for frame in frames for packet in encoder.push(frame)]
    shown = [frame for packet in packets for frame in decoder.push(packet)]
    assert [frame.pts for frame in shown] == [frame.pts for frame in frames]


def test_models_that_do_not_come_from_a_file_stay_here(networks):
    model = BlockMeans()
    assert networks.wrap(model) is model and networks.pid is None


@needs_signals
def test_job_of_a_killed_worker_is_done_by_the_next(manifold, networks, told, picture, monkeypatch):
    monkeypatch.setattr(player.networks, "JOB_PIXELS", 1)
    remote = networks.wrap(manifold)
    latents = remote.analyse(picture[None]) * torch.linspace(0, 1, 6).view(-1, 1, 1, 1)
    pictures = remote.synthesise(latents, 128, 128)
    first, before = next(pictures), networks.pid
    os.kill(before, signal.SIGKILL)
    found, expected = [first, *pictures], list(manifold.synthesise(latents, 128, 128))
    assert all(np.abs(a.astype(int) - b).max() > 9 for a, b in pairwise(expected))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(found, expected, strict=True))
    assert networks.pid not in (None, before) and ends(before)
    assert told == ["The networks' process ended (by SIGKILL) and is started again"]


def test_worker_that_never_starts_is_told_in_one_line(manifold, networks, monkeypatch):
    monkeypatch.setattr(player.networks, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(NetworksError, match=r"4 times within a minute \(last: with status 3\)") as raised:
        networks.wrap(manifold)
    assert "\n" not in str(raised.value)


def test_what_the_network_refuses_is_told_in_one_line(manifold, networks):
    remote = networks.wrap(manifold)
    with pytest.raises(NetworksError, match="cannot do that") as raised:
        list(remote.synthesise(torch.zeros(1, 5, 1, 1), 128, 128))
    assert "\n" not in str(raised.value)
    assert len(list(remote.synthesise(torch.zeros(1, 48, 1, 1), 128, 128))) == 1  # and it goes on


@needs_signals
def test_close_frees_whoever_waits_for_a_stopped_worker(manifold, networks, told, picture):
    remote = networks.wrap(manifold)
    pid = networks.pid
    os.kill(pid, signal.SIGSTOP)
    caught = []

    def ask() -> None:
        try:
            remote.analyse(picture[None])
        except NetworksError as error:
            caught.append(str(error))

    waiting = threading.Thread(target=ask)
    waiting.start()
    time.sleep(0.1)
    networks.close()
    waiting.join(PATIENCE_S)
    assert caught == ["the source is closed"] and told == [] and ends(pid)


@needs_signals
def test_stalled_worker_is_given_up(manifold, networks, told, picture, monkeypatch):
    remote = networks.wrap(manifold)
    expected = remote.analyse(picture[None])
    os.kill(networks.pid, signal.SIGSTOP)
    monkeypatch.setattr(player.networks, "STALLED_S", 0.2)

    def tell(line: str) -> None:
        told.append(line)
        monkeypatch.setattr(player.networks, "STALLED_S", 60.0)

    networks._tell = tell
    assert torch.equal(remote.analyse(picture[None]), expected)
    assert told == ["The networks' process ended (it gave no answer for 0 s) and is started again"]


def test_pictures_left_untaken_give_their_memory_back(manifold, networks, picture, monkeypatch):
    monkeypatch.setattr(player.networks, "JOB_PIXELS", 1)
    remote = networks.wrap(manifold)
    latents = remote.analyse(picture[None]).repeat(4, 1, 1, 1)
    for _ in range(20):
        pictures = remote.synthesise(latents, 128, 128)
        next(pictures)
        pictures.close()
    list(remote.synthesise(latents, 128, 128))
    worker = networks._worker
    end_s = time.monotonic() + PATIENCE_S
    while worker._jobs or len(worker._free) < worker._slots:  # those left untaken were still under way
        assert time.monotonic() < end_s, "a slot is lost"
        time.sleep(0.002)
    assert worker._slots <= 5 * networks.jobs + 2
    assert names_in_shared_memory() == set()


@needs_signals
def test_worker_ends_with_a_killed_window():
    program = (
        "import sys, time\nfrom mcode.manifold import load\nfrom player.demo import prepare\n"
        "from player.networks import Networks\n"
        "networks = Networks()\nnetworks.wrap(load(prepare().manifold))\nprint(networks.pid, flush=True)\ntime.sleep(600)\n"
    )
    window = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        pid = int(window.stdout.readline())
        assert lives(pid)
        window.kill()
        window.wait(PATIENCE_S)
        assert ends(pid)
    finally:
        window.kill()
        window.wait()
        window.stdout.close()


@needs_signals
def test_comparison_goes_on_when_its_worker_is_killed():
    session = open_source("demo:", Settings(n=2))
    session.start()
    try:
        wait_until(session, lambda: session.lanes[0].serial > 8)
        os.kill(session.networks.pid, signal.SIGKILL)
        wait_until(session, lambda: bool(session.notices))
        assert "started again" in session.notices[0]
        serial = session.lanes[0].serial
        wait_until(session, lambda: session.lanes[0].serial > serial + 8)
        assert session.failed is None
        pid = session.networks.pid
    finally:
        session.close()
    assert ends(pid)


def test_frames_not_wanted_are_not_synthesised():
    class Counting(BlockMeans):
        made = 0

        def synthesise(self, latents, width, height):
            self.made += len(latents)
            return super().synthesise(latents, width, height)

    model = Counting()
    encoder, decoder = Encoder(model, 16, 8, n=4, coder="fixed", cuts=False), Decoder(model)
    packets = [packet for i in range(9) for packet in encoder.push(grey(20 * i, i))]
    list(decoder.push(packets[0]))
    model.made = 0
    frames = list(decoder.push(packets[1], wanted=lambda pts: pts == 2 * 3600))
    assert [frame.pts for frame in frames] == [2 * 3600, 4 * 3600] and model.made == 2
    assert [int(frame.rgb.mean()) for frame in frames] == [40, 80]
    frames = list(decoder.push(packets[2], wanted=lambda pts: False))  # the keyframe is always made
    assert [int(frame.rgb.mean()) for frame in frames] == [160]
