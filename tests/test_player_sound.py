"""Sound without a sound card: what would be heard, and when, through a card that the test plays itself."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import pytest

pytest.importorskip("PyQt6.QtMultimedia")

from mcode.receive import AudioChunk, PlayoutClock
from player import audio
from player.audio import RATE, Audio, LiveAudio, open_audio

SECOND = RATE * 4


class Card:
    """A sound card with an empty buffer."""

    def start(self, pipe) -> None:
        self.pipe = pipe

    def stop(self) -> None:
        pass

    def setVolume(self, volume: float) -> None:
        self.volume = volume

    def bufferSize(self) -> int:
        return 100

    def bytesFree(self) -> int:
        return 100

    def play(self, size: int) -> bytes:
        """Take that much sound, waiting for the decoder."""
        data = b""
        end_s = time.monotonic() + 60
        while len(data) < size:
            assert time.monotonic() < end_s, "no sound came"
            if self.pipe.waiting:
                data += self.pipe.readData(size - len(data))
            else:
                time.sleep(0.005)
        return data


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
    live.halt()
