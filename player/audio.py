"""The sound of a file, in step with the pictures: decoded in a thread, pulled by the sound card (Qt's multimedia).

Where there is no sound card, open_audio gives None and the wall clock leads.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import av
import numpy as np
from PyQt6.QtCore import QIODevice, QLoggingCategory, QObject

from mcode.errors import InputError
from mcode.video import audio_packets, due_s

if TYPE_CHECKING:
    from PyQt6.QtMultimedia import QAudioSink

    from mcode.receive import AudioChunk

RATE, CHANNELS, BYTES = 48_000, 2, 2
_BYTES_PER_S = RATE * CHANNELS * BYTES
_CARD_BYTES = _BYTES_PER_S // 8
_AHEAD_S = 0.6
_SILENCE = bytes(_BYTES_PER_S // 100)
_GAP_S = 0.01
"""A longer gap between two pieces is silence; a shorter one is the coarseness of their time stamps."""
NO_ANSWER_S = 3.0
"""A card that takes nothing for this long is given up. (PulseAudio's null sink may take two seconds at a time.)"""
SERVER_LOST = "pa_context_connect() failed"
"""What Qt prints where it finds no PulseAudio, or not again; QAudioSink.start() then aborts the process."""

DOUBT_S = 2.5
"""One that has played, and has taken nothing for this long when it is to stop, is not started again. (The null sink stands for
two seconds between its takes.)"""

_lost = threading.Event()


def note_lost_server() -> None:
    """Qt said SERVER_LOST: no sound from now on."""
    _lost.set()


class _Pipe(QIODevice):
    """Bytes from the decoder's thread to the sound card's. Silence where there are none yet, and after the end. given: what
    the card has of the file; silence after the end counts, so that the pictures go on. taken: all that it ever took."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._lock = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self.waiting = 0
        self.given = 0
        self.taken = 0
        self._ended = False
        self.open(QIODevice.OpenModeFlag.ReadOnly)

    def put(self, data: bytes, stop: threading.Event | None = None) -> None:
        """Waits while there is enough, and puts nothing once stop is set. Without stop it never waits."""
        with self._lock:
            while stop is not None and self.waiting > _AHEAD_S * _BYTES_PER_S and not stop.is_set():
                self._lock.wait(0.1)
            if stop is None or not stop.is_set():
                self._pieces.append(data)
                self.waiting += len(data)

    def end(self, stop: threading.Event) -> None:
        """No more comes, unless stop is set: then it was not the end."""
        with self._lock:
            self._ended |= not stop.is_set()

    def clear(self) -> None:
        with self._lock:
            self._pieces.clear()
            self.waiting = self.given = 0
            self._ended = False
            self._lock.notify_all()

    def bytesAvailable(self) -> int:
        return self.waiting + (len(_SILENCE) if self._ended else 0) + super().bytesAvailable()

    def isSequential(self) -> bool:
        return True

    def readData(self, most: int) -> bytes:
        with self._lock:
            if not self._pieces:
                silence = _SILENCE[:most]
                self.taken += len(silence)
                if self._ended:
                    self.given += len(silence)
                return silence
            piece = self._pieces.popleft()
            if len(piece) > most:
                self._pieces.appendleft(piece[most:])
                piece = piece[:most]
            self.waiting -= len(piece)
            self.given += len(piece)
            self.taken += len(piece)
            self._lock.notify_all()
            return piece

    def writeData(self, data: object) -> int:
        return -1


class _Sound:
    """A pipe into the sound card, and whether the card takes what is in it."""

    playing = True

    def __init__(self) -> None:
        self._pipe, self._sink = _Pipe(), _sink()
        self._taken, self._stood_s, self._asked_s = 0, 0.0, time.monotonic()
        self._gone = False

    def answers(self, now_s: float) -> bool:
        """To be called often; now_s: time.monotonic(). Once it is False, keep this and call nothing of it: Qt's sink may block
        or abort, even where it is deleted."""
        waited_s = min(now_s - self._asked_s, 0.1)  # what holds up the window may hold up the card, too
        stands = self.playing and self._pipe.taken == self._taken
        self._stood_s = self._stood_s + waited_s if stands else 0.0
        self._taken, self._asked_s = self._pipe.taken, now_s
        self._gone |= self._stood_s >= NO_ANSWER_S or _lost.is_set()
        return not self._gone

    def halt(self) -> None:
        """Silence. A card that has come to a stand is left as it is."""
        self._gone |= self._stood_s >= DOUBT_S and self._pipe.taken > 2 * _CARD_BYTES
        if not self._gone:
            self._sink.stop()
        self._pipe.clear()


class Audio(_Sound):
    """One file's sound. heard_s: where in the file the ear is, None while nothing can be said."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self._start_s = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._muted = False
        self.playing = False

    def play_from(self, start_s: float) -> None:
        self.halt()
        if self._gone:
            return
        self._start_s = start_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._decode, args=(start_s, self._stop), name="player sound", daemon=True)
        self._thread.start()
        self._sink.start(self._pipe)
        self.playing = True

    def halt(self) -> None:
        """Silence; play_from goes on."""
        self._stop.set()
        super().halt()
        self.playing = False
        if self._thread is not None:
            self._thread.join(2.0)
            self._thread = None

    @property
    def heard_s(self) -> float | None:
        if not self.playing or not self._pipe.given:
            return None
        in_card = max(0, self._sink.bufferSize() - self._sink.bytesFree())
        return self._start_s + (self._pipe.given - in_card) / _BYTES_PER_S

    @property
    def muted(self) -> bool:
        return self._muted

    @muted.setter
    def muted(self, muted: bool) -> None:
        self._muted = muted
        self._sink.setVolume(0.0 if muted else 1.0)

    def _decode(self, start_s: float, stop: threading.Event) -> None:
        resampler = av.AudioResampler(format="s16", layout="stereo", rate=RATE)
        written = 0
        try:
            for packet in audio_packets(self.path, start_s):
                if stop.is_set():
                    return
                for due, samples in _samples(packet, resampler):
                    while due - written > _GAP_S * RATE and not stop.is_set():
                        silent = min(due - written, RATE // 10)
                        self._pipe.put(bytes(silent * CHANNELS * BYTES), stop)
                        written += silent
                    heard = samples if written else samples[max(0, -due) :]
                    if len(heard):
                        self._pipe.put(heard.tobytes(), stop)
                    written += len(heard)
        except (av.FFmpegError, InputError):
            pass  # what there is has been heard
        finally:
            self._pipe.end(stop)


def _samples(packet: av.Packet[av.AudioStream], resampler: av.AudioResampler) -> list[tuple[int, np.ndarray]]:
    """int16 (n, CHANNELS), each with the sample from the start on that it is due at. Of a damaged packet none."""
    made = []
    try:
        for piece in packet.decode():
            time_s = due_s(packet) if piece.pts is None or piece.time_base is None else piece.pts * piece.time_base
            due = round(time_s * RATE)
            for frame in resampler.resample(piece):
                made.append((due, frame.to_ndarray().reshape(-1, CHANNELS)))
                due += frame.samples
    except (av.FFmpegError, ValueError):  # PyAV's ValueError: sound of another form, as damage may feign
        return []
    return made


class LiveAudio(_Sound):
    """A live stream's sound: pieces that say when they are due. Late ones are left out, gaps are silence."""

    LATE_S, MOST_WAITING_S = 0.08, 0.3

    def __init__(self, pieces: deque[AudioChunk]) -> None:
        super().__init__()
        self._pieces = pieces
        self.muted = False
        self._sink.start(self._pipe)

    def feed(self, now_s: float, paused: bool) -> None:
        """To be called often; now_s: time.monotonic()."""
        while self._pieces:
            waiting_s = self._pipe.waiting / _BYTES_PER_S
            late_s = now_s + waiting_s - self._pieces[0].due_s
            if late_s < -0.04:
                return  # its time is not yet
            samples = self._pieces.popleft().samples
            if late_s > self.LATE_S or paused or self.muted or waiting_s > self.MOST_WAITING_S:
                continue
            self._pipe.put(_stereo(samples))


def _stereo(samples: np.ndarray) -> bytes:
    """int16 (n, channels) -> bytes of two channels."""
    both = samples if samples.shape[1] == CHANNELS else np.repeat(samples[:, :1], CHANNELS, axis=1)
    return np.ascontiguousarray(both, dtype=np.int16).tobytes()


def _sink() -> QAudioSink:
    from PyQt6.QtMultimedia import QAudioFormat, QAudioSink, QMediaDevices

    sound_format = QAudioFormat()
    sound_format.setSampleRate(RATE)
    sound_format.setChannelCount(CHANNELS)
    sound_format.setSampleFormat(QAudioFormat.SampleFormat.Int16)
    made = QAudioSink(QMediaDevices.defaultAudioOutput(), sound_format)
    made.setBufferSize(_CARD_BYTES)
    return made


def has_sound_card() -> bool:
    # Qt tells at length which optional libraries it did not find.
    QLoggingCategory.setFilterRules("qt.multimedia.*=false")
    from PyQt6.QtMultimedia import QMediaDevices

    return not _lost.is_set() and not QMediaDevices.defaultAudioOutput().isNull()


def open_audio(path: str | os.PathLike[str] | None) -> Audio | None:
    """The sound of a file, or None where it has none or this machine cannot play any."""
    return Audio(path) if path is not None and has_sound_card() else None
