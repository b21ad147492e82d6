"""How fast the codec is: each of its steps, and whole, beside x264 and SVT-AV1 in the same run.

All that is compared takes turns (A, B, C, A, B, C, ...), so that whatever else the machine does hits all alike: ratios are
medians over the turns. Pictures are in memory on both sides; no files, no scaling. Not here: quality (compare.py).
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mcode.errors import InputError
from mcode.frame import TICKS_PER_S, Frame
from mcode.jobs import cores

FPS = 25
BASELINES = {"h264": ("x264 medium", 40.0), "av1": ("SVT-AV1 6", 55.0)}
"""Label and CRF of the codecs beside: a coarse picture, as MCode's."""
SMALL = (128, 128)
SIDE_MIN = 16
"""Of the clips that testclip renders."""
DOUBLING_LIMIT = 2.1
"""Twice the pixels should cost at most this many times the time."""
_ROUNDS_MIN, _ROUNDS_MAX = 3, 200
_SAMPLE_S = 0.02  # shorter runs are repeated within a sample, so that the clock's grain does not count
_PAN_PIXELS = 2  # a frame


@dataclass(frozen=True)
class Machine:
    """What ran it. threads: torch's; cores: those this process may use; precision: of the first manifold; load: 1-minute
    average at the start."""

    processor: str
    cores: int
    threads: int
    memory_gb: float
    gpu: str | None
    device: str
    precision: str
    torch: str
    av: str
    python: str
    system: str
    load: float | None


@dataclass(frozen=True)
class Row:
    """One step of one codec at one size.

    frames: pictures a sample processes (keyframes for analysis, coders and networks). fps, fps_low, fps_high: median and
    quartiles over the samples; ms and ms_per_megapixel: a frame's, from the median. faster: how many times faster than
    another codec encodes or decodes, median over the rounds; only for whole encoding and decoding. samples_s: seconds, one
    for each round. share: of a coder's encoding, its part in a keyframe's analysis and coding, one after the other; median
    over the rounds.
    """

    codec: str
    step: str
    width: int
    height: int
    frames: int
    fps: float
    fps_low: float
    fps_high: float
    ms: float
    ms_per_megapixel: float
    samples_s: tuple[float, ...]
    rate_kbps: float | None = None
    faster: dict[str, float] = field(default_factory=dict)
    share: float | None = None


@dataclass(frozen=True)
class Memory:
    """Peak of a process of its own that encodes and then decodes. base_mb: before, with libraries, clip and weights."""

    codec: str
    width: int
    height: int
    peak_mb: float
    base_mb: float
    gpu_peak_mb: float | None


@dataclass(frozen=True)
class Scaling:
    """Time of a single picture by its size. ms: medians. factors: what twice the pixels cost from each size to the next,
    (t2 / t1) ** (1 / log2(pixels2 / pixels1)), medians over the rounds; factor: from the smallest to the largest."""

    codec: str
    step: str
    sizes: tuple[tuple[int, int], ...]
    ms: tuple[float, ...]
    factors: tuple[float, ...]
    factor: float
    samples_s: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class BenchReport:
    """n: keyframe interval. seconds: asked for each size. notes: what was left out, and why. precisions: of the manifolds, by
    name."""

    machine: Machine
    n: int
    seconds: float
    rows: tuple[Row, ...]
    memory: tuple[Memory, ...]
    scaling: tuple[Scaling, ...]
    notes: tuple[str, ...]
    precisions: dict[str, str]


@dataclass(frozen=True)
class Job:
    """Something to time. run may return the seconds that it measured itself, as CUDA's events do. against: the other codecs'
    step it is compared with, where that has another name. after: the same codec's step before it, for its share in both."""

    codec: str
    step: str
    size: tuple[int, int]
    frames: int
    run: Callable[[], float | None]
    rate_kbps: float | None = None
    against: str | None = None
    after: str | None = None


def bench(
    manifolds: Sequence[Any],
    *,
    device: str = "auto",
    sizes: Sequence[tuple[int, int]] = ((640, 360), (1280, 720), (1920, 1080)),
    seconds: float = 10.0,
    frames: int = 33,
    n: int = 4,
    compiled: bool = False,
    memory: bool = True,
    progress: Callable[[int, int | None], None] | None = None,
) -> BenchReport:
    """Measures manifolds (names, files or loaded ones) at `sizes`, (width, height); those of one fixed size at theirs.

    seconds: for each size, warm-up excluded; three rounds at least. frames: of the clip that a sample encodes or decodes.
    compiled: the networks through torch.compile (and CUDA graphs) too. Raises InputError, ManifoldError.
    """
    from mcode.latents import choose_device
    from mcode.manifold import load

    where = choose_device(device)
    models = [m if hasattr(m, "analyse") else load(m, device) for m in manifolds]
    if not models or frames < 1:
        raise InputError("nothing to measure: give at least one manifold and one frame")
    names = [model.name for model in models]
    if twice := [name for name in names if names.count(name) > 1]:  # rows are told apart by them
        raise InputError(f"--manifold: two manifolds are named {twice[0]}; give each once")
    for model in models:
        if model.frame_size and min(model.frame_size) < SIDE_MIN:
            own = "x".join(map(str, model.frame_size))
            raise InputError(
                f"--manifold {model.name}: its pictures are {own}, and {SIDE_MIN}x{SIDE_MIN} is the least that bench "
                "measures; leave it out"
            )
    by_size: dict[tuple[int, int], list[Any]] = {}
    for model in models:
        for size in [model.frame_size] if model.frame_size else sizes:
            by_size.setdefault(tuple(size), []).append(model)
    machine = describe_machine(where, models[0])
    notes: list[str] = []
    tell = _Counter(progress)
    rows: list[Row] = []
    peaks: list[Memory] = []
    for size, members in by_size.items():
        clip = make_clip(size, frames, moving_camera=any(model.frame_size is None for model in members))
        jobs = [job for model in members for job in manifold_jobs(model, clip, n, compiled, notes)]
        beside = [codec for codec in BASELINES if _fits(codec, size)]
        jobs += [job for codec in beside for job in baseline_jobs(codec, clip)]
        rows += rows_of(jobs, take_turns(jobs, seconds, tell))
        for codec in [*(model for model in members if hasattr(model, "info")), *beside] if memory else []:
            peaks.append(_peak(codec, size, n, where.type))
            tell()
    ladder = sorted({SMALL, *((width, height) for width, height in sizes)}, key=math.prod)
    scaling = [row for model in models if model.frame_size is None for row in _scaling(model, ladder, seconds, tell)]
    precisions = {model.name: _precision(model) for model in models}
    return BenchReport(machine, n, seconds, tuple(rows), tuple(peaks), tuple(scaling), tuple(dict.fromkeys(notes)), precisions)


# Measuring


def take_turns(jobs: Sequence[Job], seconds: float, tell: Callable[[], None] = lambda: None) -> list[list[float]]:
    """Seconds of one run of each job, a sample a round, jobs taking turns; each ran once or more before, unmeasured."""
    repeats = []
    for job in jobs:
        job.run()  # allocations, code caches, the choice of kernels
        repeats.append(max(1, math.ceil(_SAMPLE_S / max(_timed(job, 1), 1e-6))))
        tell()
    samples: list[list[float]] = [[] for _ in jobs]
    end = time.perf_counter() + seconds
    while len(samples[-1]) < _ROUNDS_MIN or (time.perf_counter() < end and len(samples[-1]) < _ROUNDS_MAX):
        for job, count, found in zip(jobs, repeats, samples, strict=True):
            found.append(_timed(job, count))
            tell()
    return samples


def _timed(job: Job, count: int) -> float:
    started = time.perf_counter()
    own = [job.run() for _ in range(count)]
    length_s = time.perf_counter() - started
    return (sum(own) if own[0] is not None else length_s) / count  # type: ignore[arg-type]


def rows_of(jobs: Sequence[Job], samples: Sequence[Sequence[float]]) -> list[Row]:
    found = {(job.codec, job.step): np.array(times) for job, times in zip(jobs, samples, strict=True)}
    frames = {(job.codec, job.step): job.frames for job in jobs}
    rows = []
    for job, times in zip(jobs, samples, strict=True):
        low, median, high = (float(job.frames / q) for q in np.percentile(times, (75, 50, 25)))
        step = job.against or job.step
        others = {name: found[label, step] for name, (label, _) in BASELINES.items() if (label, step) in found}
        mine = found[job.codec, job.step]
        faster = {name: float(np.median(other / mine)) for name, other in others.items() if BASELINES[name][0] != job.codec}
        share = None
        if job.after is not None:
            own, before = mine / job.frames, found[job.codec, job.after] / frames[job.codec, job.after]
            share = float(np.median(own / (own + before)))
        ms = 1000 / median
        rows.append(
            Row(
                *(job.codec, job.step, *job.size, job.frames, median, low, high, ms, ms * 1e6 / math.prod(job.size)),
                tuple(times),
                job.rate_kbps,
                faster,
                share,
            )
        )
    return rows


def _scaling(model: Any, ladder: Sequence[tuple[int, int]], seconds: float, tell: Callable[[], None]) -> list[Scaling]:
    """One picture to bytes and back, at every size in turn."""
    if len(ladder) < 2:
        return []
    pairs = [image_jobs(model, make_clip(size, 1)) for size in ladder]
    jobs = [job for pair in pairs for job in pair]
    samples = take_turns(jobs, seconds, tell)
    rows = []
    for index, step in enumerate(("encode image", "decode image")):
        times = [np.array(samples[2 * i + index]) for i in range(len(ladder))]

        def factor(a: int, b: int, times: list[np.ndarray] = times) -> float:
            doublings = math.log2(math.prod(ladder[b]) / math.prod(ladder[a]))
            return float(np.median(times[b] / times[a]) ** (1 / doublings))

        factors = tuple(factor(i, i + 1) for i in range(len(ladder) - 1))
        ms = tuple(float(np.median(t)) * 1000 for t in times)
        whole = factor(0, len(ladder) - 1)
        rows.append(
            Scaling(model.name, step, tuple(ladder), ms, factors, whole, tuple(map(tuple, (t.tolist() for t in times))))
        )
    return rows


# What is measured


def make_clip(size: tuple[int, int], frames: int, *, moving_camera: bool = True) -> list[Frame]:
    """A camera panning over a rendered landscape, with a sensor's grain; else the rendered talking head."""
    from mcode.testclip import render_frames

    if not moving_camera:
        return list(render_frames("face", frames / FPS, FPS, size))
    width, height = size
    rng = np.random.default_rng(0)
    wide = next(iter(render_frames("pan", 1 / FPS, FPS, (width + _PAN_PIXELS * frames, height)))).rgb.astype(np.int16)
    grain = rng.integers(-3, 4, (height, width + 8, 3), np.int16)
    clip = []
    for i in range(frames):
        shown = wide[:, _PAN_PIXELS * i : _PAN_PIXELS * i + width] + np.roll(grain, 37 * i, 0)[:, i % 8 : i % 8 + width]
        clip.append(Frame(shown.clip(0, 255).astype(np.uint8), i * TICKS_PER_S // FPS))
    return clip


def manifold_jobs(model: Any, clip: Sequence[Frame], n: int, compiled: bool, notes: list[str]) -> list[Job]:
    """Analysis of a keyframe, in integers too where live video has it so; synthesis of a decoder's batch, once more without
    integers where it uses them; every coder alone; and whole: frames to bytes and back, with `huffman` and, where there is
    a hyperprior, with `range`."""
    from mcode.codec import frames_at_once
    from mcode.latents import dequantise, quantise

    size = width, height = clip[0].width, clip[0].height
    quality, sync = model.default_quality, _synchroniser(model)
    keyframes = [frame for i, frame in enumerate(clip) if i % n == 0 or i == len(clip) - 1]
    latents = [model.analyse(frame.rgb[None]) for frame in keyframes]
    batch = min(n, len(clip), frames_at_once(width, height))
    decoded = dequantise(quantise(latents[0][0], model.gain(quality)), model.inverse(quality))
    some = decoded.expand(batch, *decoded.shape).contiguous()

    def job(step: str, frames: int, run: Callable[[], Any], kbps: float | None = None, **beside: str) -> Job:
        def synchronised() -> None:
            run()
            sync()

        return Job(model.name, step, size, frames, synchronised, kbps, **beside)

    jobs = [
        job("analysis", 1, lambda: model.analyse(clip[0].rgb[None])),
        job("synthesis", batch, lambda: model.synthesise(some, width, height)),
    ]
    if getattr(model, "precision", "") == "int8":
        plain, quick = model.in_floats(), model.in_integers()
        if quick is not model:
            jobs.append(job("analysis int8", 1, lambda: quick.analyse(clip[0].rgb[None])))
        jobs.append(job(f"synthesis {plain.precision}", batch, lambda: plain.synthesise(some, width, height)))
    dense = ("range",) if model.hyper is not None else ()
    for coder in ("fixed", "huffman", *dense):
        bare = _WithoutNetworks(model, latents)
        data, encode = _encode(bare, keyframes, 1, coder), partial(_encode, bare, keyframes, 1, coder)
        jobs.append(job(f"{coder} encode", len(keyframes), encode, _kbps(data, clip), after="analysis"))
        jobs.append(job(f"{coder} decode", len(keyframes), partial(_decode, bare, data, 1)))
    for coder in ("huffman", *dense):
        data, encode = _encode(model, clip, n, coder), partial(_encode, model, clip, n, coder)
        named = "" if coder == "huffman" else f" with {coder}"
        jobs.append(job(f"encode{named}", len(clip), encode, _kbps(data, clip), against="encode"))
        jobs.append(job(f"decode{named}", len(clip), partial(_decode, model, data, n), against="decode"))
    if hasattr(model, "net") and (compiled or model.device.type == "cuda"):
        jobs += _network_jobs(model, size, batch, compiled, notes)
    return jobs


def image_jobs(model: Any, clip: Sequence[Frame]) -> list[Job]:
    """The first picture alone to bytes, and back."""
    size, sync = (clip[0].width, clip[0].height), _synchroniser(model)
    data = _encode(model, clip[:1], 1, "huffman")

    def encode() -> None:
        _encode(model, clip[:1], 1, "huffman")
        sync()

    def decode() -> None:
        _decode(model, data, 1)

    return [Job(model.name, "encode image", size, 1, encode), Job(model.name, "decode image", size, 1, decode)]


def baseline_jobs(codec: str, clip: Sequence[Frame]) -> list[Job]:
    """The same clip through x264 or SVT-AV1, opening and flushing included, as with MCode."""
    label, crf = BASELINES[codec]
    size = clip[0].width, clip[0].height
    packets = _baseline_encode(codec, crf, clip)
    rate = _kbps([(packet.data, 0) for packet in packets], clip)

    def encode() -> None:
        _baseline_encode(codec, crf, clip)

    def decode() -> None:
        _baseline_decode(codec, packets, size)

    return [Job(label, "encode", size, len(clip), encode, rate), Job(label, "decode", size, len(clip), decode)]


def _network_jobs(model: Any, size: tuple[int, int], batch: int, compiled: bool, notes: list[str]) -> list[Job]:
    """The networks alone on tensors already there, plain and compiled, on CUDA as graphs; and the copies, pinned or not.

    Both halves see few shapes (one picture; a batch and what is left over of it), which is what compiling and graphs want.
    """
    import torch

    device, cuda = model.device, model.device.type == "cuda"
    width, height = size
    stride = model.stride or 1
    padded = -(-height // stride) * stride, -(-width // stride) * stride
    pictures = torch.zeros(1, 3, *padded, device=device).contiguous(memory_format=torch.channels_last)
    jobs = []

    def add(step: str, frames: int, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:  # a compiler is missing, or gives up: the other rows stand
            notes.append(f"{model.name}, {step}: left out, {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            return
        jobs.append(Job(model.name, step, size, frames, _cuda_timed(call) if cuda else call_only(call)))

    def call_only(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            call()
            _synchroniser(model)()

        return run

    def forward(network: Callable[[Any], Any], x: Any) -> Callable[[], Any]:
        def run() -> Any:
            on = model.dtype != torch.float32  # no cache of weights: a graph would read them after they were freed
            with torch.inference_mode(), torch.autocast(device.type, model.dtype, enabled=on, cache_enabled=False):
                return network(x)

        return run

    y = forward(model.net.analysis, pictures)()  # its shape: with a mean, more channels are sent
    latents = torch.zeros(batch, *y.shape[1:], device=device)
    for name, network, x, frames in (
        ("analysis", model.net.analysis, pictures, 1),
        ("synthesis", model.net.synthesis, latents, batch),
    ):
        add(f"{name} network", frames, forward(network, x))
        if compiled:
            add(f"{name} compiled", frames, forward(torch.compile(network, dynamic=False), x))
        if cuda:
            add(f"{name} graph", frames, _graphed(forward(network, x), x))
        if compiled and cuda:
            reduced = torch.compile(network, dynamic=False, mode="reduce-overhead")
            add(f"{name} compiled graph", frames, forward(reduced, x))
    if cuda:
        plain = torch.zeros(height, width, 3, dtype=torch.uint8)
        pinned, there = plain.pin_memory(), plain.to(device)
        add("upload", 1, lambda: there.copy_(plain))
        add("upload pinned", 1, lambda: there.copy_(pinned, non_blocking=True))
        add("download", 1, lambda: plain.copy_(there))
        add("download pinned", 1, lambda: pinned.copy_(there, non_blocking=True))
    return jobs


def _graphed(call: Callable[[], Any], x: Any) -> Callable[[], Any]:
    """Replays a CUDA graph of call(), captured when first run; x: its input, for the capture alone."""
    from mcode.nets.graphs import capture

    captured: list[Any] = []

    def run() -> None:
        if not captured:
            captured.append(capture(lambda _: call(), x))
        captured[0].replay()

    return run


def _cuda_timed(call: Callable[[], Any]) -> Callable[[], float]:
    import torch

    def run() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    return run


class _WithoutNetworks:
    """A manifold whose analysis and synthesis cost nothing: what is left is quantiser, deltas, coder and packets."""

    def __init__(self, model: Any, latents: Sequence[Any]) -> None:
        self._model, self._latents, self._next = model, latents, 0
        self._blank = np.zeros((1, 1, 1, 1), np.uint8)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def analyse(self, rgb: np.ndarray) -> Any:
        self._next += 1
        return self._latents[(self._next - 1) % len(self._latents)]

    def synthesise(self, latents: Any, width: int, height: int) -> np.ndarray:
        return np.broadcast_to(self._blank, (len(latents), height, width, 3))


def _encode(model: Any, frames: Iterable[Frame], n: int, coder: str) -> list[tuple[bytes, int]]:
    """(bytes, pts) of each packet; cuts are not looked for where every frame is a keyframe."""
    from mcode.codec import Encoder

    encoder, data = None, []
    for frame in frames:
        encoder = encoder or Encoder(model, frame.width, frame.height, n=n, coder=coder)
        data += [(packet.to_sample(n), packet.pts) for packet in encoder.push(frame)]
    assert encoder is not None
    return data + [(packet.to_sample(n), packet.pts) for packet in encoder.flush()]


def _decode(model: Any, data: Iterable[tuple[bytes, int]], n: int) -> None:
    from mcode.codec import Decoder
    from mcode.packet import Packet

    decoder = Decoder(model)
    for sample, pts in data:
        for _ in decoder.push(Packet.parse_sample(sample, pts, decoder.header)):
            pass


def _baseline_encode(codec: str, crf: float, frames: Iterable[Frame]) -> list[Any]:
    from mcode.baseline import BaselineEncoder

    encoder, packets = None, []
    for frame in frames:
        # x264 on all cores: speed is what counts here
        encoder = encoder or BaselineEncoder(codec, frame.width, frame.height, crf=crf, fps=FPS, options={"threads": "0"})
        packets += encoder.push(frame)
    assert encoder is not None
    return packets + encoder.flush()


def _baseline_decode(codec: str, packets: Iterable[Any], size: tuple[int, int]) -> None:
    from mcode.baseline import BaselineDecoder

    decoder = BaselineDecoder(codec, *size)
    for packet in packets:
        decoder.push(packet)
    decoder.flush()


def _kbps(data: Sequence[tuple[bytes, int]], clip: Sequence[Frame]) -> float:
    return sum(len(sample) for sample, _ in data) * 8 / 1000 * FPS / len(clip)


def _fits(codec: str, size: tuple[int, int]) -> bool:
    from mcode.baseline import CODERS

    return min(size) >= CODERS[codec].side_min


def _synchroniser(model: Any) -> Callable[[], None]:
    import torch

    kind = getattr(getattr(model, "device", None), "type", "cpu")
    return {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(kind, lambda: None)


class _Counter:
    """progress(done, None) at every call."""

    def __init__(self, progress: Callable[[int, int | None], None] | None) -> None:
        self.progress, self.done = progress, 0

    def __call__(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, None)


# Memory


_CHILD = "from mcode.evaluation.bench import _measure_memory; _measure_memory()"
_CLIP_HELD, _CLIP_PLAYED = 9, 60  # frames: enough to fill the look-ahead of x264 and SVT-AV1; MCode has a gap's at most


def _peak(codec: Any, size: tuple[int, int], n: int, device: str) -> Memory:
    """In a process of its own: peaks only rise, and the other codecs' would count."""
    given = {"size": size, "n": n, "device": device}
    given |= {"codec": codec} if isinstance(codec, str) else {"manifold": os.fspath(codec.info.path.resolve())}
    root = os.fspath(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed: {done.stderr.strip().splitlines()[-1:]}")
    label = BASELINES[codec][0] if isinstance(codec, str) else codec.name
    return Memory(label, *size, **json.loads(done.stdout.splitlines()[-1]))


def _measure_memory() -> None:
    """The child: stdin to stdout."""
    given = json.load(sys.stdin)
    size, n, codec = tuple(given["size"]), given["n"], given.get("codec")
    wide = (
        np.random.default_rng(0).integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )
    held = [np.ascontiguousarray(wide[: size[1], 2 * i : 2 * i + size[0]]) for i in range(_CLIP_HELD)]
    frames = (Frame(held[abs(i % 16 - 8)], i * TICKS_PER_S // FPS) for i in range(_CLIP_PLAYED if codec else 2 * n + 1))
    gpu = None
    if codec:
        import mcode.baseline  # noqa: F401  its libraries are not the codec's memory

        base = _peak_rss_mb()
        _baseline_decode(codec, _baseline_encode(codec, BASELINES[codec][1], frames), size)
    else:
        import torch

        from mcode.manifold import load

        model = load(given["manifold"], given["device"])
        base = _peak_rss_mb()
        _decode(model, _encode(model, frames, n, "huffman"), n)
        if model.device.type == "cuda":
            gpu = torch.cuda.max_memory_allocated() / 1e6
    print(json.dumps({"peak_mb": _peak_rss_mb(), "base_mb": base, "gpu_peak_mb": gpu}))


def _peak_rss_mb() -> float:
    """Of this program alone: on Linux ru_maxrss also holds the parent's memory at the fork, VmHWM does not."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


# The machine


def _precision(model: Any) -> str:
    return getattr(model, "precision", "float32")


def describe_machine(device: Any, model: Any) -> Machine:
    import av
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(
        processor=names[0] if names else platform.processor() or platform.machine(),
        cores=cores(),
        threads=torch.get_num_threads(),
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        device=device.type,
        precision=_precision(model),
        torch=torch.__version__,
        av=av.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )
