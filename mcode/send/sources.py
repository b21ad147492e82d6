"""Where pictures and sound to send come from: a file, a camera or the test picture, of the coded size."""

from __future__ import annotations

import gc
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import av
import cv2
import numpy as np

from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame
from mcode.rtp import opus
from mcode.send.config import SPEECH_BELOW_KBPS, SendConfig
from mcode.send.testsrc import test_picture
from mcode.transcode import geometry
from mcode.video import FrameReader, audio_packets, centre_crop, resize

CAMERA_PATIENCE_S = 1.0
"""A camera without pictures for this long is said to be gone; it is waited for all the same."""
_CAMERA_RETRY_S = 0.2
Notify = Callable[[str], None]


class Source:
    """Frames to send, all of one size. is_paced: they wait for their time (a file); a camera sets the pace itself.

    stop: set when no more frames are wanted. notify: hears, in one line, what the user should know while it goes on.
    """

    width: int
    height: int
    display: tuple[int, int]
    fps: float = 25.0
    is_paced: bool = True
    has_audio: bool = False
    is_stereo: bool = False
    expected_frames: int | None = None
    stop: threading.Event = threading.Event()
    notify: Notify = staticmethod(lambda line: None)

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    @staticmethod
    def _no_loop(config: SendConfig) -> InputError:
        return InputError(f"{config.input}: one picture has no time to start over after; send it without --loop")

    def audio_until(self, time_s: float) -> Iterator[tuple[bytes, int]]:
        """(Opus packet, pts in 1/48,000 s) that start before time_s."""
        return iter(())

    def close(self) -> None:
        pass


def open_source(config: SendConfig, frame_size: tuple[int, int] | None) -> Source:
    """The source that config.input names, scaled and cropped to suit the manifold. Raises InputError."""
    if config.input == "testsrc":
        return TestSource(config, frame_size)
    if config.input.startswith("camera:"):
        return CameraSource(config, frame_size)
    return FileSource(config, frame_size)


class FileSource(Source):
    def __init__(self, config: SendConfig, frame_size: tuple[int, int] | None) -> None:
        options: dict[str, Any] = {"start_s": config.start_s, "duration_s": config.duration_s}
        whole = FrameReader(config.input, **options)
        coded, self.display, aspect = geometry((whole.width, whole.height), config.size, frame_size)
        self.width, self.height = coded
        self._reader = FrameReader(config.input, **options, size=coded, crop_to=aspect)
        info = self._reader.info
        if config.loop and info.is_image:
            raise self._no_loop(config)
        self.fps = info.average_fps or 25.0
        self.has_audio = info.audio_codec is not None
        first = next(audio_packets(config.input, config.start_s), None) if self.has_audio and config.sdp is not None else None
        self.is_stereo = first is not None and first.stream.codec_context.channels > 1
        self._config = config
        self._sound: Iterator[tuple[bytes, int]] = iter(())
        self._next: tuple[bytes, int] | None = None
        if info.duration_s is not None and not config.loop:
            length_s = min(info.duration_s - config.start_s, config.duration_s or math.inf)
            self.expected_frames = max(1, round(length_s * self.fps))

    def __iter__(self) -> Iterator[Frame]:
        start = 0
        while True:
            end = start
            if self.has_audio and self._config.audio:
                self._sound = _followed(self._next, self._sound, _opus_packets(self._config, start / TICKS_PER_S))
                self._next = next(self._sound, None)
            for frame in self._reader:
                frame = replace(frame, pts=frame.pts + start)
                gap, end = frame.pts - end, frame.pts
                yield frame
            if not self._config.loop:
                return
            if end == start:
                raise self._no_loop(self._config)
            start = end + max(1, gap)
            release_decoders()

    def audio_until(self, time_s: float) -> Iterator[tuple[bytes, int]]:
        while self._next is not None and self._next[1] < time_s * opus.CLOCK_HZ:
            packet, self._next = self._next, next(self._sound, None)
            yield packet


def _followed(
    packet: tuple[bytes, int] | None, rest: Iterator[tuple[bytes, int]], others: Iterator[tuple[bytes, int]]
) -> Iterator[tuple[bytes, int]]:
    """A packet and the rest of its round, until the next round's begin; then those."""
    first = next(others, None)
    while packet is not None and (first is None or packet[1] < first[1]):
        yield packet
        packet = next(rest, None)
    rest = iter(())  # and its decoder
    if first is not None:
        yield first
    yield from others


def release_decoders() -> None:
    """Free what going through a file once left behind: PyAV's containers and streams refer to each other, so that they
    and their decoders, a megabyte or more, stay until Python looks for such circles, which it does rarely. What was loaded
    before the first call is passed over from then on (gc.freeze): looking through the networks would take 0.1 s."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
    gc.collect()


def _opus_packets(config: SendConfig, offset_s: float) -> Iterator[tuple[bytes, int]]:
    """The source's sound as Opus packets, with times in 1/48,000 s from the first picture."""
    encoder: Any = None
    resampler: Any = None
    for packet in audio_packets(config.input, config.start_s, config.duration_s):
        try:
            decoded: list[Any] = packet.decode()
        except av.error.FFmpegError:
            continue  # a damaged packet is a short silence
        for frame in decoded:
            if encoder is None or resampler is None:
                layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
                encoder = av.CodecContext.create("libopus", "w")
                encoder.sample_rate, encoder.layout, encoder.format = opus.CLOCK_HZ, layout, "s16"
                encoder.bit_rate = round(1000 * config.audio_kbps)
                speech = config.audio_kbps < SPEECH_BELOW_KBPS
                encoder.options = {
                    "frame_duration": str(config.audio_packet_ms),
                    "application": "voip" if speech else "audio",
                    "vbr": "constrained",
                }
                size = config.audio_packet_ms * opus.CLOCK_HZ // 1000
                resampler = av.AudioResampler("s16", layout, opus.CLOCK_HZ, frame_size=size)
            for piece in resampler.resample(frame):
                yield from _timed(encoder.encode(piece), offset_s)
    if encoder is not None and resampler is not None:
        for piece in resampler.resample(None):
            yield from _timed(encoder.encode(piece), offset_s)
        yield from _timed(encoder.encode(None), offset_s)


def _timed(packets: list[av.Packet], offset_s: float) -> Iterator[tuple[bytes, int]]:
    for packet in packets:
        if packet.pts is not None:
            yield bytes(packet), round(packet.pts * packet.time_base * opus.CLOCK_HZ + offset_s * opus.CLOCK_HZ)


class CameraSource(Source):
    """camera:0. Frames bear the time of their arrival. A camera that stops giving pictures is waited for, and said to be."""

    is_paced = False

    def __init__(self, config: SendConfig, frame_size: tuple[int, int] | None) -> None:
        number = config.input.removeprefix("camera:")
        if not number.isdecimal():
            raise InputError(f"{config.input}: a camera is camera:0, camera:1 ...")
        self._number, self._config = int(number), config
        self._camera = cv2.VideoCapture(self._number)
        if not self._camera.isOpened():
            raise InputError(f"{config.input}: there is no such camera, or it may not be used")
        good, picture = self._camera.read()
        if not good:
            self._camera.release()
            raise InputError(f"{config.input}: the camera gives no picture; is another program using it?")
        h, w = picture.shape[:2]
        coded, self.display, self._aspect = geometry((w, h), config.size, frame_size)
        self.width, self.height = coded
        self.fps = self._camera.get(cv2.CAP_PROP_FPS) or 25.0

    def __iter__(self) -> Iterator[Frame]:
        start = last_good = time.monotonic()
        last_pts = -1
        gone = False
        while not self.stop.is_set():
            good, picture = self._camera.read()
            now = time.monotonic()
            pts = max(last_pts + 1, round((now - start) * TICKS_PER_S))
            if self._config.duration_s is not None and pts >= self._config.duration_s * TICKS_PER_S:
                return
            if not good:
                if not gone and now - last_good >= CAMERA_PATIENCE_S:
                    gone = True
                    self.notify(f"{self._config.input} gives no more pictures: is it unplugged? It is waited for; Ctrl-C ends")
                self.stop.wait(_CAMERA_RETRY_S)
                self._camera.release()
                self._camera.open(self._number)
                continue
            if gone:
                gone = False
                self.notify(f"{self._config.input} is back")
            last_good, last_pts = now, pts
            yield Frame(_fitted(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), self._aspect, self.width, self.height), pts)

    def close(self) -> None:
        self._camera.release()


def _fitted(rgb: np.ndarray, aspect: tuple[int, int] | None, width: int, height: int) -> np.ndarray:
    return np.ascontiguousarray(resize(rgb if aspect is None else centre_crop(rgb, aspect), width, height))


class TestSource(Source):
    """testsrc: a moving picture, 25 frames/s, with the frame's number as black and white blocks along the top."""

    __test__ = False  # not a test case

    def __init__(self, config: SendConfig, frame_size: tuple[int, int] | None) -> None:
        coded, self.display, _ = geometry(config.size or (640, 360), config.size, frame_size)
        self.width, self.height = coded
        self._limit = None if config.duration_s is None else round(config.duration_s * self.fps)
        self.expected_frames = self._limit

    def __iter__(self) -> Iterator[Frame]:
        for index in itertools.count() if self._limit is None else range(self._limit):
            yield Frame(test_picture(index, self.width, self.height), round(index * TICKS_PER_S / self.fps))
