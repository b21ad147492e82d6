"""Sound without a sound card: what would be heard, and when, through a card that the test plays itself."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

pytest.importorskip("PyQt6.QtMultimedia")

from mcode.receive import AudioChunk, PlayoutClock
from mcode.video import audio_packets
from player import audio
from player.audio import RATE, Audio, LiveAudio, open_audio

SECOND = RATE * 4
PATIENCE_S = 60


class Card:
    """A sound card with an empty buffer."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, pipe) -> None:
        self.pipe = pipe
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")

    def setVolume(self, volume: float) -> None:
        self.volume = volume

    def bufferSize(self) -> int:
        return 100

    def bytesFree(self) -> int:
        return 100

    def play(self, size: int) -> bytes:
        """Take that much sound, waiting for the decoder."""
        data = b""
        end_s = time.monotonic() + PATIENCE_S
        while len(data) < size:
            assert time.monotonic() < end_s, "no sound came"
            if self.pipe.waiting:
                data += self.pipe.readData(size - len(data))
            else:
                time.sleep(0.005)
        return data

    def play_until(self, done: Callable[[], bool]) -> None:
        """Take what there is, sound or silence."""
        end_s = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < end_s, "it did not come to that"
            self.pipe.readData(SECOND)
            time.sleep(0.001)


def write_tone(path: Path, picture_s: int, from_s: int, until_s: int) -> Path:
    """A grey video with a tone in a part of it."""
    with av.open(path, "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = output.add_stream("aac", rate=RATE, layout="mono")
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 100, np.uint8), "rgb24")
        for index in range(picture_s * 25):
            picture.pts, picture.time_base = index, Fraction(1, 25)
            output.mux(video.encode(picture))
        for at in range(from_s * RATE, until_s * RATE, 1000):
            tone = 0.5 * np.sin(np.arange(at, at + 1000, dtype=np.float32) / 20)
            frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
            frame.pts, frame.time_base, frame.sample_rate = at, Fraction(1, RATE), RATE
            output.mux(sound.encode(frame))
        output.mux(video.encode(None))
        output.mux(sound.encode(None))
    return path


@pytest.fixture
def card(monkeypatch):
    made = Card()
    monkeypatch.setattr(audio, "_sink", lambda: made)
    return made


def test_what_is_heard_tells_the_time(card, clip):
    sound = Audio(clip)
    assert sound.heard_s is None
    sound.play_from(0.0)
    heard = np.frombuffer(card.play(SECOND // 2), np.int16)
    assert heard.std() > 0 and sound.heard_s == pytest.approx(0.5, abs=0.02)
    sound.play_from(1.0)
    card.play(SECOND // 4)
    assert sound.heard_s == pytest.approx(1.25, abs=0.02)
    sound.muted = True
    assert card.volume == 0.0
    sound.halt()
    assert not sound.playing and sound.heard_s is None


def test_time_goes_on_where_the_sound_ends_before_the_picture(card, tmp_path):
    sound = Audio(write_tone(tmp_path / "a.mp4", 4, 0, 1))
    sound.play_from(0.5)
    card.play_until(lambda: (sound.heard_s or 0.0) > 3.0)
    sound.play_from(2.0)  # where there is none
    card.play_until(lambda: (sound.heard_s or 0.0) > 2.5)
    sound.play_from(0.5)
    assert sound.heard_s is None, "the end of what was played before is not this one's"
    assert np.frombuffer(card.play(SECOND // 4), np.int16).std() > 1000
    sound.halt()


def test_sound_that_begins_after_the_picture_waits_for_its_time(card, tmp_path):
    sound = Audio(write_tone(tmp_path / "a.mp4", 3, 2, 3))
    sound.play_from(0.0)
    assert not any(card.play(SECOND * 19 // 10))
    assert np.frombuffer(card.play(SECOND // 2), np.int16)[SECOND // 8 :].std() > 1000
    sound.halt()


def test_what_lies_before_the_start_is_not_heard(card, clip, monkeypatch):
    piece = np.arange(2048, dtype=np.int16).repeat(2).reshape(-1, 2)
    pieces = iter([[(-1024, piece)], [(1024, piece)]])
    monkeypatch.setattr(audio, "_samples", lambda packet, resampler: next(pieces, []))
    sound = Audio(clip)
    sound.play_from(0.0)
    heard = np.frombuffer(card.play(4 * 3072), np.int16)[::2]
    assert heard.tolist() == [*range(1024, 2048), *range(2048)]
    sound.halt()


def test_packet_that_does_not_decode_is_a_short_silence(card, clip, monkeypatch):
    def damaged(path: str, start_s: float) -> Iterator[av.Packet]:
        for index, packet in enumerate(audio_packets(path, start_s)):
            if index == 20:
                packet, whole = av.Packet(b"\xff" * packet.size), packet
                packet.pts, packet.time_base, packet.stream = whole.pts, whole.time_base, whole.stream
                with pytest.raises(av.FFmpegError):
                    packet.decode()
            yield packet

    sound, played = Audio(clip), []
    for packets in (audio_packets, damaged):
        monkeypatch.setattr(audio, "audio_packets", packets)
        sound.play_from(0.0)
        played.append(np.frombuffer(card.play(SECOND * 3 // 2), np.int16))
    sound.halt()
    assert np.corrcoef(played[0][-RATE:], played[1][-RATE:])[0, 1] > 0.99, "what follows is not at its time"


@pytest.mark.parametrize("acts", [False, True])
def test_card_that_comes_to_a_stand_is_given_up_and_left_alone(acts, card, clip):
    sound, now_s = Audio(clip), time.monotonic()
    sound.play_from(0.0)
    for _ in range(50):
        card.play(SECOND // 50)
        now_s += 0.1
        assert sound.answers(now_s), "a card that plays"
    now_s += 1000
    assert sound.answers(now_s), "the window stood, too"
    for _ in range(27 if acts else 40):
        now_s += 0.1
        sound.answers(now_s)
    card.calls.clear()
    sound.play_from(1.0) if acts else sound.halt()
    assert not sound.answers(now_s) and not sound.playing and not card.calls


def test_short_stand_or_a_pause_is_no_stop(card, clip):
    sound, now_s = Audio(clip), time.monotonic()
    sound.play_from(0.0)
    for _ in range(25):  # a card that needs its time to begin
        now_s += 0.1
        assert sound.answers(now_s)
    sound.play_from(0.5)
    card.play(SECOND // 2)
    assert sound.answers(now_s) and sound.playing
    sound.halt()
    for _ in range(100):
        now_s += 0.1
        assert sound.answers(now_s)


def test_card_that_takes_two_seconds_at_a_time_survives_a_seek(card, clip):  # as PulseAudio's null sink
    sound, now_s = Audio(clip), time.monotonic()
    sound.play_from(0.0)
    card.play(SECOND)
    assert sound.answers(now_s)
    for _ in range(21):
        now_s += 0.1
        assert sound.answers(now_s)
    sound.play_from(0.5)
    card.play(SECOND // 2)
    assert sound.answers(now_s) and sound.playing
    sound.halt()


def test_server_that_is_lost_is_never_asked_again(card, clip, monkeypatch):
    monkeypatch.setattr(audio, "_lost", threading.Event())
    sound = Audio(clip)
    assert sound.answers(time.monotonic())
    audio.note_lost_server()
    assert not sound.answers(time.monotonic()) and not audio.has_sound_card()
    sound.play_from(0.0)
    assert not card.calls


def test_no_path_is_no_sound():
    assert open_audio(None) is None


@pytest.fixture
def clock():
    """Shows a moment of the sender's at the same number of seconds here."""
    made = PlayoutClock()
    made.observe("audio", 0.0, -made.MARGIN_S)
    return made


def test_sound_moves_with_the_pictures_when_the_clock_does(clock):
    chunk = AudioChunk(np.zeros((960, 2), np.int16), 10.0, clock)
    assert chunk.due_s == pytest.approx(10.0)
    clock.observe("mcode", 5.0, 5.3)
    assert chunk.due_s == clock.due_s(10.0) == pytest.approx(10.308)
    clock.restart()  # another sender: what the one before said is over
    assert chunk.due_s < 0


def test_live_pieces_play_when_due_and_late_ones_are_left_out(card, clock):
    def piece(due_s: float, value: int) -> AudioChunk:
        return AudioChunk(np.full((960, 2), value, np.int16), due_s, clock)

    pieces = deque([piece(9.0, 1), piece(10.0, 2), piece(10.02, 3), piece(11.0, 4)])
    live = LiveAudio(pieces)
    live.feed(10.0, paused=False)
    assert set(np.frombuffer(card.play(2 * 960 * 4), np.int16)) == {2, 3}
    assert len(pieces) == 1  # its time is not yet
    live.feed(11.0, paused=True)
    assert not pieces and live._pipe.waiting == 0
    live.muted = True
    pieces.append(piece(12.0, 5))
    live.feed(12.0, paused=False)
    assert not pieces and live._pipe.waiting == 0
    live.muted = False
    pieces.append(piece(13.0, 6))
    live.feed(13.0, paused=False)
    assert live._pipe.waiting == 960 * 4
    live.halt()
