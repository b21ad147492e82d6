"""A stream over real datagrams on loopback into a session, and what the window is told when there is none."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from mcode.errors import InputError, ManifoldError
from mcode.send import SendConfig, Sender
from player import remote
from player.remote import Remote
from player.session import Settings
from tests.block_means import BlockMeans
from tests.test_player_sessions import wait_until


def free_port() -> int:
    """An even port whose four followers are likely free, too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1] // 2 * 2 - 20


@pytest.fixture
def stream():
    port = free_port()
    url = f"rtp://127.0.0.1:{port}"
    session = Remote(url, manifold=BlockMeans())
    session.start()
    config = SendConfig("testsrc", url, size=(64, 48), coder="fixed", refresh_s=0.5, duration_s=120.0, audio=False)
    try:
        with Sender(config, model=BlockMeans()) as sender:
            yield session, sender
    finally:
        session.close()


def test_both_lanes_arrive_over_the_network(stream):
    session, sender = stream
    assert "Waiting for a sender" in session.busy
    sender.start()
    wait_until(session, lambda: all(lane.serial > 5 for lane in session.lanes))
    assert session.busy is None
    frame = session.lanes[0].newest
    assert (frame.width, frame.height) == (64, 48) and frame.rgb.std() > 10
    wait_until(session, lambda: session.lanes[0].counters.rate_kbps > 0)
    assert dict(session.stats())["Picture"] == "64 × 48"
    assert (session.settings.coder, session.settings.n) == ("fixed", 4)  # what comes, for the controls to show
    sender.update(n=2)
    wait_until(session, lambda: session.settings.n == 2)


def test_pause_holds_the_picture_and_play_goes_on(stream):
    session, sender = stream
    sender.start()
    wait_until(session, lambda: session.lanes[0].serial > 3)
    session.pause(True)
    lane, view = session.lanes[0], session.receiver.lanes["mcode"]
    held, seen = lane.serial, view.shown
    decoded = []
    lane.counters.decoded.add = decoded.append
    wait_until(session, lambda: view.shown > seen + 10)
    assert lane.serial == held
    assert sum(decoded) >= 5 and max(decoded) < sum(decoded), "those of the pause are counted at its end"
    session.pause(False)
    wait_until(session, lambda: session.lanes[0].serial > held + 3)


def test_channel_here_acts_at_once(stream):
    session, sender = stream
    sender.start()
    wait_until(session, lambda: session.lanes[0].serial > 3)
    session.settings = Settings(loss=0.5)
    wait_until(session, lambda: session.lanes[0].counters.packets_lost > 2)
    before = session.lanes[0].serial
    wait_until(session, lambda: session.lanes[0].serial > before + 3)


def test_quality_of_a_network_stream_is_said_to_be_unknown(stream):
    from player.view import caption_values

    session, sender = stream
    sender.start()
    wait_until(session, lambda: all(lane.counters.rate_kbps > 0 and lane.newest is not None for lane in session.lanes))
    for lane in session.lanes:
        assert caption_values(lane)[-1] == "PSNR unknown" and "kbit/s" in caption_values(lane)[0]
    assert dict(session.stats())["PSNR"].startswith("unknown")


def test_a_sender_that_dies_is_one_line_and_comes_back(stream, monkeypatch):
    monkeypatch.setattr("player.remote.SILENT_S", 0.4)
    session, first = stream
    first._wire.goodbye = lambda: None
    first.start()
    wait_until(session, lambda: session.lanes[0].serial > 3)
    session.notices.clear()
    first.stop()
    wait_until(session, lambda: len(session.notices) > 0)
    assert list(session.notices) == ["The sender fell silent; waiting for it to come back"]
    serial = session.lanes[0].serial
    with Sender(first.config, model=BlockMeans()) as second:
        second.start()
        wait_until(session, lambda: session.lanes[0].serial > serial + 5)
    assert session.failed is None


def test_general_comes_over_the_network():
    url = f"rtp://127.0.0.1:{free_port()}"
    session = Remote(url)
    session.start()
    try:
        config = SendConfig("testsrc", url, manifold="general", size=(128, 96), baseline="none", duration_s=120.0)
        with Sender(config) as sender:
            sender.start()
            wait_until(session, lambda: session.lanes[0].serial > 20)
            shown = session.lanes[0].newest.rgb
            assert shown.shape == (96, 128, 3) and shown.std() > 20
            assert session.receiver.error is None and dict(session.stats())["Picture"] == "128 × 96"
    finally:
        session.close()


def test_a_baseline_that_nobody_sends_gives_up_its_place_until_one_comes(stream, monkeypatch):
    monkeypatch.setattr(remote, "ALONE_S", 0.2)
    session, both = stream
    with Sender(replace(both.config, baseline="none"), model=BlockMeans()) as alone:
        alone.start()
        wait_until(session, lambda: [lane.name for lane in session.lanes] == ["mcode"])
        session.sample(0.0)
        assert [title for title, _ in session.stats() if "H.264" in title] == []
    both.start()
    wait_until(session, lambda: [lane.name for lane in session.lanes] == ["mcode", "baseline"])
    wait_until(session, lambda: session.lanes[1].serial > 5)
    session.sample(10.0)


def test_port_in_use_is_one_clear_line():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="another program") as raised:
            Remote(f"rtp://127.0.0.1:{taken.getsockname()[1]}")
    assert "\n" not in str(raised.value)


def test_wrong_sdp_is_one_clear_line(tmp_path):
    path = tmp_path / "wrong.sdp"
    path.write_text("this is no session description\n")
    with pytest.raises(InputError) as raised:
        Remote(path)
    assert "wrong.sdp" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("baseline", ["none", "h264"])
def test_a_missing_manifold_is_told_as_long_as_it_is_missing(baseline):
    def missing(manifold_id: bytes):
        raise ManifoldError(f"no manifold {manifold_id.hex()[:8]} is installed")

    url = f"rtp://127.0.0.1:{free_port()}"
    session = Remote(url)
    session._find = missing
    session.start()
    try:
        config = SendConfig("testsrc", url, size=(64, 48), coder="fixed", baseline=baseline, duration_s=120.0, audio=False)
        with Sender(config, model=BlockMeans()) as sender:
            sender.start()
            wait_until(session, lambda: len(session.notices) > 0)
            if baseline != "none":
                wait_until(session, lambda: session.lanes[1].serial > 5)
            session.notices.clear()
            heard = session.receiver.lanes["mcode"].counters().received
            wait_until(session, lambda: session.receiver.lanes["mcode"].counters().received > heard + 5)
            assert not session.notices and session.lanes[0].newest is None
            assert session.lanes[0].waiting.startswith("no manifold ") and session.lanes[0].waiting.endswith(" is installed")
            assert session.busy == (session.lanes[0].waiting if baseline == "none" else None)
    finally:
        session.close()
