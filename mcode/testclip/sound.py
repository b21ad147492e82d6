"""The demo clip's sound: speech-like babble made of formants, and soft music. The face reads its mouth from here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Array = np.ndarray
RATE = 48_000

VOWELS = {  # formants 1-3 in Hz (after Peterson and Barney 1952, women) and how wide the lips are, 0..1
    "a": (850, 1220, 2810, 0.55),
    "e": (610, 2330, 2990, 0.85),
    "i": (310, 2790, 3310, 1.00),
    "o": (590, 920, 2710, 0.20),
    "u": (370, 950, 2670, 0.00),
}


@dataclass(frozen=True)
class Speech:
    """voice: float (samples,), within about -1..1. The rest at 200 values a second: loudness 0..1 and lip width 0..1."""

    voice: Array
    loudness: Array
    width: Array

    def mouth(self, t: float) -> tuple[float, float]:
        """(opening, width), each 0..1, at t seconds."""
        at = t * 200
        grid = np.arange(len(self.loudness))
        return float(np.interp(at, grid, self.loudness)), float(np.interp(at, grid, self.width))


@lru_cache(maxsize=4)
def speech(seconds: float, seed: int) -> Speech:
    """Phrases of made-up words, the same for the same seed."""
    rng = np.random.default_rng([seed, 11])
    count = max(1, round(seconds * RATE))
    steps = int(seconds * 200) + 2
    t_control = np.arange(steps) / 200
    amplitude, pitch = np.zeros(steps), np.full(steps, 185.0)
    marks: list[tuple[float, str]] = [(0.0, "e")]
    hiss = np.zeros(count)
    t = 0.25
    while t < seconds - 0.3:
        phrase_start, syllables = t, int(rng.integers(5, 11))
        for index in range(syllables):
            length = rng.uniform(0.15, 0.23) * (1.5 if index == syllables - 1 else 1)
            if t + length > seconds - 0.05:
                break
            vowel = str(rng.choice(list(VOWELS)))
            stress = rng.uniform(0.55, 1.0)
            shape = np.clip(np.minimum((t_control - t) / 0.045, (t + length - t_control) / 0.075), 0, 1)
            amplitude = np.maximum(amplitude, stress * shape * shape * (3 - 2 * shape))
            bump = np.exp(-(((t_control - t - length / 2) / 0.10) ** 2))
            pitch += 38 * (stress - 0.6) * bump
            marks += [(t + 0.04, vowel), (t + length * 0.7, vowel)]
            start, kind = int(t * RATE), rng.integers(0, 4)
            if kind < 2:  # s or t before the vowel
                burst = int((0.075 if kind == 0 else 0.02) * RATE)
                noise = np.diff(rng.standard_normal(burst + 2), 2) * np.hanning(burst) * (0.035 if kind == 0 else 0.06)
                begin = max(0, start - burst // 2)
                noise = noise[: max(0, count - begin)]
                hiss[begin : begin + len(noise)] += noise
            t += length + (rng.uniform(0.05, 0.10) if rng.random() < 0.35 else 0.015)
        inside = (t_control >= phrase_start) & (t_control < t)
        pitch[inside] -= 30 * (t_control[inside] - phrase_start) / max(t - phrase_start, 0.1)  # declination
        t += rng.uniform(0.30, 0.55)

    times = np.array([m[0] for m in marks])
    tracks = [np.interp(t_control, times, [VOWELS[m[1]][k] for m in marks]) for k in range(4)]
    smooth = np.hanning(13) / np.hanning(13).sum()
    f1, f2, f3, width = (np.convolve(np.pad(x, 6, mode="edge"), smooth, "valid") for x in tracks)
    pitch = np.convolve(np.pad(pitch, 6, mode="edge"), smooth, "valid") * (1 + 0.012 * np.sin(2 * np.pi * 5.2 * t_control))

    # Additive synthesis: each harmonic of the pitch at the height of the formants' curve there.
    at = np.arange(count) / RATE
    phase = 2 * np.pi * np.cumsum(np.interp(at, t_control, pitch)) / RATE
    voice = np.zeros(count)
    for harmonic in range(1, 24):
        f = harmonic * pitch
        level = sum(
            gain / np.sqrt((1 - (f / centre) ** 2) ** 2 + (f * wide / centre**2) ** 2)
            for centre, wide, gain in ((f1, 90, 1.0), (f2, 110, 0.42), (f3, 170, 0.16))
        )
        level = level * np.clip((5200 - f) / 1200, 0, 1) / harmonic**1.15
        voice += np.interp(at, t_control, level * amplitude) * np.sin(harmonic * phase)
    voice = voice / max(np.abs(voice).max(), 1e-9) + hiss

    power = (
        np.interp(t_control, at, np.convolve(voice**2, np.full(RATE // 50, 50 / RATE), "same")) if count > 960 else amplitude**2
    )
    loudness = np.sqrt(np.maximum(power, 0))
    loudness = np.clip(loudness / max(np.percentile(loudness, 97), 1e-6), 0, 1) ** 0.7
    kernel = np.hanning(11) / np.hanning(11).sum()
    return Speech(voice, np.convolve(np.pad(loudness, 5, mode="edge"), kernel, "valid"), np.clip(width, 0, 1))


BEAT_S = 0.625
"""96 beats a minute; the figure's arms move to it."""

CHORDS = ((48, 55, 60, 64, 71), (45, 52, 60, 64, 67), (41, 53, 57, 60, 64), (43, 50, 59, 62, 65))
"""MIDI notes of C major 7, A minor 7, F major 7 and G 7, four beats each."""


def music(seconds: float, seed: int) -> Array:
    """Float (samples,): a soft pad, plucked notes and a light beat."""
    rng = np.random.default_rng([seed, 12])
    count = max(1, round(seconds * RATE))
    out = np.zeros(count)
    bar = 4 * BEAT_S

    def add(start_s: float, sound: Array) -> None:
        begin = int(start_s * RATE)
        part = sound[: max(0, count - begin)]
        out[begin : begin + len(part)] += part

    t_pad = np.arange(int((bar + 1.0) * RATE)) / RATE
    swell = np.clip(t_pad / 0.8, 0, 1) * np.clip((bar + 1.0 - t_pad) / 1.0, 0, 1)
    t_note = np.arange(int(1.6 * RATE)) / RATE
    for index in range(int(seconds / bar) + 1):
        chord = CHORDS[index % 4]
        for note in chord:
            f = 440 * 2 ** ((note - 69) / 12)
            tone = sum(np.sin(2 * np.pi * f * detune * t_pad + rng.uniform(0, 6.28)) for detune in (0.998, 1.0, 1.0025))
            tone = tone + 0.3 * np.sin(2 * np.pi * 2 * f * t_pad)
            add(index * bar, tone * swell * 0.016 * (100 / f) ** 0.2)
        for eighth in range(8):
            if rng.random() < 0.72:
                f = 440 * 2 ** ((int(rng.choice(chord[1:])) + 12 - 69) / 12)
                pluck = sum(
                    np.sin(2 * np.pi * f * k * t_note) * np.exp(-t_note * (2.2 + 2.5 * k)) / k**1.6 for k in (1, 2, 3, 4)
                )
                add(index * bar + eighth * BEAT_S / 2, pluck * np.clip(t_note / 0.004, 0, 1) * rng.uniform(0.06, 0.11))
        for beat in range(4):
            t_drum = t_note[: int(0.25 * RATE)]
            if beat % 2 == 0:
                add(
                    index * bar + beat * BEAT_S,
                    0.16 * np.sin(2 * np.pi * (46 * t_drum - 4 * np.exp(-t_drum * 30))) * np.exp(-t_drum * 14),
                )
            brush = np.diff(rng.standard_normal(len(t_drum) + 1)) * np.exp(-t_drum * 45) * 0.016
            add(index * bar + (beat + 0.5) * BEAT_S, brush)
    return out


def render_audio(scene: str, seconds: float, seed: int = 0) -> Array:
    """int16 (samples,), mono at RATE: music, and in the scene "face" speech; "demo" speaks in its middle third."""
    count = max(1, round(seconds * RATE))
    music_level = np.ones(count)
    voice = np.zeros(count)
    start, length = {"face": (0.0, seconds), "demo": (seconds / 3, seconds / 3)}.get(scene, (0.0, 0.0))
    if length:
        spoken = speech(length, seed).voice
        begin = round(start * RATE)
        spoken = spoken[: count - begin]
        voice[begin : begin + len(spoken)] = spoken
        speaking = np.zeros(count)
        speaking[begin : begin + len(spoken)] = 1
        music_level = 1 - 0.6 * speaking
        ease = RATE // 4
        total = np.cumsum(np.concatenate([np.full(ease, music_level[0]), music_level, np.full(ease, music_level[-1])]))
        music_level = (total[2 * ease :] - total[: -2 * ease]) / (2 * ease)
    dry = 0.42 * voice + music(seconds, seed) * music_level
    fade = np.clip(np.minimum(np.arange(count), np.arange(count)[::-1]) / (0.15 * RATE), 0, 1)
    return np.round(np.tanh(_room(dry, seed) * 1.1) * 0.82 * fade * 32767).astype(np.int16)


def _room(dry: Array, seed: int) -> Array:
    """A little reverberation: noise that dies away in a third of a second."""
    rng = np.random.default_rng([seed, 13])
    t = np.arange(int(0.35 * RATE)) / RATE
    response = rng.standard_normal(len(t)) * np.exp(-t * 14) * np.clip(t / 0.012, 0, 1)
    response *= 0.22 / np.sqrt((response**2).sum())
    response[0] = 1.0
    size = 1 << (len(dry) + len(response) - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(response, size), size)[: len(dry)]
