"""The live stream: real datagrams on loopback, and what may go wrong between a sender and a receiver."""

from __future__ import annotations

import os
import random
import socket
import threading
import time

import av
import numpy as np
import pytest

from mcode.channel import ChannelSettings
from mcode.errors import FormatError, InputError, ManifoldError
from mcode.receive import Receiver, receive_to_file
from mcode.rtp import sdp
from mcode.rtp.packets import RtpPacket
from mcode.send import SendConfig, Sender, read_stamp, send
from mcode.video import FrameReader, probe

from .block_means import TICKS, BlockMeans
from .loopback import MODEL, PATIENCE_S, OtherModel, config, in_thread, slides, wait_for
from .test_rtp import of_a_newer_format

pytestmark = pytest.mark.usefixtures("nothing_is_left_running")


def test_a_stream_arrives_in_a_file_with_every_frame_at_its_time(tmp_path, port):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL))
    time.sleep(0.3)
    sent = send(config(port, n=4), model=MODEL)
    report = join()
    frames = list(FrameReader(tmp_path / "a.mp4"))
    assert report.frames == sent.frames == len(frames) and sent.frames + sent.dropped == 50
    assert (report.width, report.height, report.coder, report.n) == (64, 48, "huffman", 4)
    assert report.counters.lost == 0 and report.counters.received == sent.lanes["mcode"].packets
    stamps = [read_stamp(f.rgb) for f in frames]
    clear = [(f.pts // TICKS, stamp) for f, stamp in zip(frames, stamps, strict=True) if stamp is not None]
    assert len(clear) >= 10 and all(abs(at - stamp) < 4 for at, stamp in clear)
    assert sum(at == stamp for at, stamp in clear) >= 8


def test_bundles_arrive_in_a_file_with_every_frame(tmp_path, port):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL))
    time.sleep(0.3)
    sent = send(config(port, n=2, bundle=5, fec="2+1"), model=MODEL)
    report = join()
    assert report.frames == sent.frames == len(list(FrameReader(tmp_path / "a.mp4")))
    assert report.counters.keyframes == sent.keyframes > 4 * (sent.lanes["mcode"].packets - report.counters.fec_packets) / 3
    assert report.counters.lost == report.counters.late == report.counters.damaged_headers == 0


@pytest.mark.parametrize(("n", "bundle"), [(4, 8), (16, 8)])  # the second longer than the clock remembers most packets
def test_the_clock_leaves_time_for_the_frames_of_a_whole_bundle_beside_sound(port, clip_with_sound, n, bundle):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        options = {"size": (32, 24), "loop": True, "n": n, "bundle": bundle, "refresh_s": 1000, "baseline": "none"}
        sender = Sender(SendConfig(os.fspath(clip_with_sound), to=f"rtp://127.0.0.1:{port}", **options), model=MODEL)
        sender.start()
        view = receiver.lanes["mcode"]
        wait_for(lambda: view.shown > 4)

        def nearly_all_are_shown() -> bool:
            shown, skipped = view.shown, view.skipped
            wait_for(lambda: view.shown > shown + 40)
            return view.shown - shown > 9 * (view.skipped - skipped)

        wait_for(nearly_all_are_shown)
        sender.stop()


def test_the_channel_at_the_sender_loses_and_damages_and_the_file_is_whole(tmp_path, port):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL))
    time.sleep(0.3)
    channel = ChannelSettings(loss=0.2, bit_error_rate=1e-3, delay_ms=20, jitter_ms=10, seed=3)
    sent = send(config(port, n=2, coder="fixed", channel=channel, duration_s=4.0), model=MODEL)
    report = join()
    lane = sent.lanes["mcode"]
    assert lane.channel_lost > 0 and lane.channel_damaged > 0
    assert report.counters.damaged > 0 and report.counters.lost_keyframes > 0
    assert report.frames >= 80 and sent.lanes["mcode"].packets - lane.channel_lost == report.counters.received


def test_both_lanes_and_their_counters_reach_a_player(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        sender = Sender(config(port, baseline="h264", duration_s=None), model=MODEL)
        sender.start()
        wait_for(lambda: all(lane.shown > 12 for lane in receiver.lanes.values()))
        wait_for(lambda: sender.status().lanes["mcode"].round_trip_ms is not None)
        seen = {name: lane.newest for name, lane in receiver.lanes.items()}
        for name, (frame, sent_unix_s, _) in seen.items():
            assert frame.rgb.shape == (48, 64, 3) and frame.rgb.std() > 20, name
            assert 0 <= time.time() - sent_unix_s < PATIENCE_S
        assert receiver.error is None and receiver.is_receiving
        # N frames, where the machine is not so busy that those between keyframes are left out
        wait_for(lambda: receiver.lanes["mcode"].delay.wait_ms == pytest.approx(120, abs=85))
        report = sender.stop()
        assert report.lanes["h264"].target_kbps is not None
        wait_for(lambda: not receiver.is_receiving)
        lane = receiver.lanes["mcode"]
        # the picture stays when the sender goes
        wait_for(lambda: (last := lane.frame) is not None and not time.sleep(0.3) and lane.frame is last)


def test_the_clock_leaves_time_for_the_frames_between_keyframes(port):
    """H.264's frames come first and set the clock; set by what is synthesised alone it would then settle on keyframes."""
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        sender = Sender(config(port, baseline="h264", duration_s=None), model=MODEL)
        sender.start()
        wait_for(lambda: len(receiver.lanes) == 2 and all(lane.shown > 4 for lane in receiver.lanes.values()))
        view = receiver.lanes["mcode"]

        def most_are_shown() -> bool:
            shown, skipped = view.shown, view.skipped
            time.sleep(1)
            return view.shown - shown > view.skipped - skipped

        wait_for(most_are_shown)
        sender.stop()


def test_frames_are_shown_while_the_next_ones_are_synthesised(port):
    class Gated(BlockMeans):
        """Its synthesis waits while the gate is closed."""

        def __init__(self):
            super().__init__()
            self.gate, self.waits = threading.Event(), threading.Event()
            self.gate.set()

        def synthesise(self, latents, width, height):
            if not self.gate.is_set():
                self.waits.set()
                self.gate.wait(PATIENCE_S)
            return super().synthesise(latents, width, height)

    model = Gated()
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=model, lanes=("mcode",)) as receiver:
        sender = Sender(config(port, n=12, baseline="none", duration_s=None), model=MODEL)
        sender.start()
        view = receiver.lanes["mcode"]
        wait_for(lambda: view.shown > 12 and view.frames - view.shown - view.skipped > 4)
        model.gate.clear()
        try:
            wait_for(model.waits.is_set)
            held = view.frames
            wait_for(lambda: view.shown + view.skipped >= held)  # all that was ready, and not one frame synthesised since
            assert view.frames == held
        finally:
            model.gate.set()
        sender.stop()


@pytest.mark.parametrize("ahead_s", [60.0, -60.0])
def test_a_late_joiner_goes_on_where_a_report_tells_that_the_senders_clock_is_another(port, ahead_s):
    sender = Sender(config(port, duration_s=None), model=MODEL)
    media_time = sender._media_time
    sender._media_time = lambda lane: (media_time(lane)[0] + (round(ahead_s) << 32), media_time(lane)[1])
    sender.start()
    wait_for(lambda: sender.status().frames > 3)  # its first report is gone
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        view = receiver.lanes["mcode"]
        wait_for(lambda: (newest := view.newest) is not None and abs(newest[1] - ahead_s - time.time()) < 20)
        shown = view.shown
        wait_for(lambda: view.shown > shown + 15)
        sender.stop()


def test_n_coder_and_channel_change_while_it_runs(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        sender = Sender(config(port, duration_s=None), model=MODEL)
        sender.start()
        lane = receiver.lanes["mcode"]
        wait_for(lambda: lane.stream is not None and lane.shown > 3)
        sender.update(n=2, coder="fixed")
        wait_for(lambda: (lane.stream.n, lane.stream.coder) == (2, "fixed"))
        sender.update(channel=ChannelSettings(loss=0.4, bit_error_rate=1e-2))
        wait_for(lambda: lane.counters().lost > 3 and lane.counters().damaged > 3)
        shown = lane.shown
        wait_for(lambda: lane.shown > shown + 5)
        with pytest.raises(InputError, match="morse"):
            sender.update(coder="morse")
        sender.stop()


def test_the_players_own_channel_damages_both_lanes_and_nothing_at_the_sender(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        sender = Sender(config(port, baseline="h264", duration_s=None), model=MODEL)
        sender.start()
        wait_for(lambda: all(lane.shown > 5 for lane in receiver.lanes.values()))
        receiver.set_channel(ChannelSettings(loss=0.3, seed=5))
        channels = receiver.channel_counters()
        wait_for(lambda: channels["mcode"].lost > 3 and channels["baseline"].lost > 3)
        assert sender.stop().lanes["mcode"].channel_lost == 0


def test_a_late_joiner_asks_and_is_served_at_once(port):
    sender = Sender(config(port, refresh_s=1000, duration_s=None), model=MODEL)
    sender.start()
    wait_for(lambda: sender.status().keyframes > 6)
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        wait_for(lambda: receiver.lanes["mcode"].shown > 5)
        assert receiver.lanes["mcode"].counters().refresh_requests >= 1
        assert sender.stop().lanes["mcode"].refresh_requests >= 1


def test_a_broken_delta_chain_heals_by_a_request(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        sender = Sender(config(port, refresh_s=1000, duration_s=None, n=1), model=MODEL)
        sender.start()
        lane = receiver.lanes["mcode"]
        wait_for(lambda: lane.shown > 5)
        receiver.set_channel(ChannelSettings(loss=1.0))
        channel = receiver.channel_counters()["mcode"]
        wait_for(lambda: channel.lost > 2)
        receiver.set_channel(ChannelSettings())
        wait_for(lambda: lane.counters().broken > 0 and not receiver._network.links[0].lane.wants_refresh)
        wait_for(lambda: read_stamp(lane.frame.rgb) is not None)
        assert lane.counters().refresh_requests >= 1 and lane.counters().lost >= 3
        sender.stop()


def test_a_broken_chain_freezes_neither_picture_nor_clock(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        sender = Sender(config(port, refresh_s=1000, duration_s=None), model=MODEL)
        sender.mcode.take_refresh_request = lambda: False  # a sender that hears nobody: the chain stays broken
        sender.start()
        lane = receiver.lanes["mcode"]
        # without a description the first refresh must come: until then there is nothing to break
        wait_for(lambda: lane.shown > 5)
        receiver.set_channel(ChannelSettings(loss=1.0))
        lost = receiver.channel_counters()["mcode"]
        wait_for(lambda: lost.lost > 2)
        receiver.set_channel(ChannelSettings())
        wait_for(lambda: lane.counters().broken > 3)
        shown, picture, pts = lane.shown, lane.frame.rgb.copy(), lane.frame.pts
        wait_for(lambda: lane.shown > shown + 20)
        assert lane.frame.pts > pts and np.any(lane.frame.rgb != picture)
        assert lane.counters().refresh_requests >= 1


def test_a_sender_that_dies_and_comes_back_is_shown_again(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        lane = receiver.lanes["mcode"]
        for goodbye in (False, True):
            shown = lane.shown
            sender = Sender(config(port, duration_s=None), model=MODEL)
            if not goodbye:
                sender._wire.goodbye = lambda: None
            sender.start()
            wait_for(lambda shown=shown: lane.shown > shown + 10)
            sender.stop()
        assert receiver.error is None


def test_manifold_mismatch_is_one_line_and_ends_receiving_to_a_file(tmp_path, port):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=OtherModel()))
    time.sleep(0.3)
    send(config(port, duration_s=1.0), model=MODEL)
    with pytest.raises(ManifoldError, match=MODEL.id) as error:
        join()
    assert "\n" not in str(error.value) and not (tmp_path / "a.mp4").exists()


def test_an_uninstalled_manifold_is_shown_and_the_player_goes_on(port):
    with Receiver(f"rtp://127.0.0.1:{port}") as receiver:
        sender = Sender(config(port, baseline="h264", duration_s=None), model=MODEL)
        sender.start()
        wait_for(lambda: receiver.error is not None and receiver.lanes["baseline"].shown > 3)
        assert MODEL.id in str(receiver.error) and isinstance(receiver.error, ManifoldError)
        sender.stop()


def test_a_newer_format_is_told_until_a_stream_of_this_one_comes(port):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL, lanes=("mcode",)) as receiver:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(of_a_newer_format(99), ("127.0.0.1", port))
        wait_for(lambda: isinstance(receiver.error, FormatError))
        with Sender(config(port, duration_s=None), model=MODEL) as sender:
            sender.start()
            wait_for(lambda: receiver.lanes["mcode"].shown > 3)
            assert receiver.error is None


def test_garbage_on_the_port_is_counted_and_dropped(port):
    rng = random.Random(1)
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        sender = Sender(config(port, baseline="h264", duration_s=None), model=MODEL)
        sender.start()
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for i in range(400):
            junk = [
                rng.randbytes(rng.randrange(1400)),
                bytes(RtpPacket(96, i, 0, 99, rng.randbytes(40))),
                bytes(RtpPacket(97, i, 0, 99, rng.randbytes(40)))[: rng.randrange(20)],
                b"\x80\xc8\0\x06" + rng.randbytes(24),
                b"",
            ]
            for offset in (0, 2, 4):
                stranger.sendto(rng.choice(junk), ("127.0.0.1", port + offset))
            time.sleep(0.001)
        stranger.close()
        before = {name: lane.shown for name, lane in receiver.lanes.items()}
        wait_for(lambda: all(lane.shown > before[name] + 5 for name, lane in receiver.lanes.items()))
        counters = receiver.lanes["mcode"].counters()
        assert counters.not_rtp + counters.damaged_headers + counters.foreign > 50
        assert receiver.error is None
        sender.stop()


@pytest.mark.parametrize(("kbps", "packet_ms"), [(32, 20), (6, 120)])
def test_sound_is_written_beside_the_picture_in_its_time(tmp_path, port, clip_with_sound, kbps, packet_ms):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL))
    time.sleep(0.3)
    sound = {"audio_kbps": kbps, "audio_packet_ms": packet_ms}
    wanted = SendConfig(os.fspath(clip_with_sound), to=f"rtp://127.0.0.1:{port}", baseline="none", **sound)
    sent = send(wanted, model=MODEL)
    report = join()
    assert sent.lanes["opus"].packets >= 2900 / packet_ms and report.audio_packets >= 2800 / packet_ms
    assert sent.lanes["opus"].payload_bytes * 8 / 1000 / sent.duration_s < 1.1 * kbps
    info = probe(tmp_path / "a.mp4")
    assert info.audio_codec in ("opus", "libopus") and report.frames >= 50
    with av.open(os.fspath(tmp_path / "a.mp4")) as container:
        audio = list(container.decode(audio=0))
        samples = np.concatenate([f.to_ndarray()[0] for f in audio])
        spectrum = np.abs(np.fft.rfft(samples[48_000:96_000]))
        assert abs(int(spectrum.argmax()) - 440) <= 2
        assert float(audio[0].pts * audio[0].time_base) < 0.1


@pytest.mark.parametrize(("realtime", "duration_s", "wanted_s"), [(True, None, 2.0), (False, None, 2.0), (False, 1.8, 1.8)])
def test_sound_after_the_last_picture_is_sent_and_written(tmp_path, port, realtime, duration_s, wanted_s):
    clip = slides(tmp_path / "slides.mkv", [0, 0.04, 0.8], 2.0)
    join = in_thread(
        lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mkv", manifold=MODEL, duration_s=duration_s)
    )
    time.sleep(0.3)
    wanted = SendConfig(os.fspath(clip), to=f"rtp://127.0.0.1:{port}", baseline="none", n=1, realtime=realtime)
    sent, report = send(wanted, model=MODEL), join()
    assert sent.lanes["opus"].packets == pytest.approx(101, abs=3) and report.frames == 3 and not report.warnings
    assert sent.lanes["opus"].rate_kbps < 60
    with av.open(os.fspath(tmp_path / "a.mkv")) as container:
        times = [float(packet.pts * packet.time_base) for packet in container.demux(audio=0) if packet.pts is not None]
    assert times[-1] == pytest.approx(wanted_s, abs=0.1)


@pytest.mark.parametrize("packet_ms", [20, 60])
def test_sound_comes_to_the_player_with_its_time(port, clip_with_sound, packet_ms):
    with Receiver(f"rtp://127.0.0.1:{port}", manifold=MODEL) as receiver:
        options = {"baseline": "none", "loop": True, "audio_packet_ms": packet_ms}
        wanted = SendConfig(os.fspath(clip_with_sound), to=f"rtp://127.0.0.1:{port}", **options)
        sender = Sender(wanted, model=MODEL)
        sender.start()
        wait_for(lambda: len(receiver.audio) > 1200 / packet_ms and receiver.lanes["mcode"].shown > 10)
        chunks = list(receiver.audio)[-600 // packet_ms :]
        assert all(c.samples.dtype == np.int16 and c.samples.shape[1] == 2 for c in chunks)
        gaps = np.diff([c.due_s for c in chunks])
        assert abs(np.median(gaps) - packet_ms / 1000) < 0.005
        sender.stop()


@pytest.mark.parametrize("host", ["239.1.1.1", "[ff02::1]"])
def test_multicast_is_refused_at_both_ends(tmp_path, host, port):
    with pytest.raises(InputError, match="multicast address, which is not supported"):
        Sender(SendConfig("testsrc", to=f"rtp://{host}:{port}"), model=MODEL)
    path = tmp_path / "a.sdp"
    path.write_text(str(sdp.Session(host.strip("[]"), (sdp.Media("MCODE", port, 96),))))
    for source in (path, f"rtp://{host}:{port}"):
        for bind_to in (None, "0.0.0.0"):
            with pytest.raises(InputError, match="multicast address, which is not supported"):
                receive_to_file(source, tmp_path / "a.mp4", manifold=MODEL, bind_to=bind_to, wait_s=0.3)


def test_repair_rebuilds_lost_packets_on_the_way_to_a_file(tmp_path, port):
    join = in_thread(lambda: receive_to_file(f"rtp://127.0.0.1:{port}", tmp_path / "a.mp4", manifold=MODEL))
    time.sleep(0.3)
    channel = ChannelSettings(loss=0.15, seed=4)
    sent = send(config(port, n=1, fec="4+2", channel=channel, duration_s=3.0), model=MODEL).lanes["mcode"]
    counters = join().counters
    assert sent.channel_lost > 3 and counters.fec_recovered > 3
    assert counters.lost < sent.channel_lost and counters.fec_packets > 10
