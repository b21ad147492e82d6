"""Holds a device against the CPU: symbols of the coder `range` both ways, pictures, and speed. One JSON line for each figure.

    python scripts/check_device.py cuda [--quick] [--parts symbols,pictures,speed,compile] [--seconds 55] [--latents 10000]

Symbols and bytes must agree exactly (exit status 1 where one does not), pictures within rounding. Needs torch, numpy, cv2,
safetensors, constriction and dahuffman; PyAV is not imported. What is left when the seconds are over is named and skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn

from mcode import manifold
from mcode.codec import Decoder, Encoder
from mcode.coders import range as ranges
from mcode.coders.range import DELTA, WITH_Z, RangeModel
from mcode.errors import McodeError
from mcode.frame import TICKS_PER_S, Frame
from mcode.latents import choose_device, dequantise, quantise
from mcode.nets.hyper import Hyper
from mcode.nets.paper import Hific, PaperConfig

PARTS = ("symbols", "pictures", "speed", "compile")
SIZES = ((640, 360), (1280, 720), (1920, 1080))
MAP = (4, 4)  # positions of a random latent: a picture of 64x64
BATCH = 500
LEAST_PSNR_DB = 45.0
"""Of bfloat16's picture against float32's, of the same symbols."""


class Clock:
    """What is left of the seconds given."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.perf_counter(), seconds

    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.start)


def say(figure: str, **values: Any) -> None:
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
    rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in plain.items()}
    print(json.dumps({"figure": figure} | rounded), flush=True)


# Symbols


class Predicted:
    """A walk (see coders.range) whose predictions for every pass stand ready: those of the device's network."""

    def __init__(self, model: RangeModel, scale: np.ndarray, quarters: np.ndarray, previous: np.ndarray | None) -> None:
        """scale, quarters: (C, h, w), as `Hyper.indices` gives them; previous: int16 (C, h, w) for a delta."""
        channels, h, w = scale.shape
        self.model, self.count = model, h * w
        self.scale, self.quarters = scale.reshape(channels, -1), quarters.reshape(channels, -1)
        self.previous = None if previous is None else previous.reshape(channels, -1)
        self.odd = np.add.outer(np.arange(h), np.arange(w)).reshape(-1) % 2 == 1

    def plan(self, i: int) -> Any:
        p = self.model.config.passes[i]
        columns = slice(None) if p.parity is None else np.flatnonzero(self.odd == bool(p.parity))
        own = slice(p.start, p.stop)
        base = None if self.previous is None else self.previous[own, columns]
        return ranges._planned(self.model, self.scale[own, columns], self.quarters[own, columns], base, columns)

    def tell(self, i: int, part: np.ndarray, columns: Any) -> None:
        """Nothing is learnt from what was decoded: the network was shown the right symbols. If each pass's predictions are
        right given those before, then decoding pass by pass gives the same; if one is wrong, what is read shows it."""


@contextmanager
def exact() -> Iterator[None]:
    """Sums in whole float32: TensorFloat-32 would cut their terms."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def check_symbols(model: Any, there: Any, count: int, dtype: torch.dtype, clock: Clock) -> bool:
    """model, there: the manifold on the CPU and on the device. Whether all symbols agreed."""
    hyper: RangeModel = model.hyper
    net = Hyper.from_integers(hyper.config, hyper.weights).to(there.device, dtype).eval()
    generator = torch.Generator().manual_seed(1)
    rounded = from_cpu = from_device = done = symbols_in_all = 0
    started, of_network = time.perf_counter(), 0.0
    with torch.inference_mode(), exact():
        while done < count and (clock.left() > 0 or not done):
            size, quality = min(BATCH, count - done), 1 + done // BATCH % model.qualities
            latents, before = random_latents(model, size, generator)
            whole = [quantise(y, model.gain(quality)) for y in latents]
            moved = [quantise(y.to(there.device), there.gain(quality)) for y in latents]
            rounded += sum(np.count_nonzero(a != b) for a, b in zip(whole, moved, strict=True))
            # every third latent is a delta to the one before
            previous = [quantise(y, model.gain(quality)) if i % 3 == 2 else None for i, y in enumerate(before)]
            of_cpu = [ranges.encode(s, p, 1, quality, hyper)[0] for s, p in zip(whole, previous, strict=True)]
            # The device's predictions of the CPU's streams, and its own streams of the same kinds.
            stacks = [ranges._stack(data) for data in of_cpu]
            kinds = [int(stack.decode(hyper._kind.model, 1)[0]) for stack in stacks]
            blank = np.zeros((hyper.config.latents, *ranges._z_size(*MAP)), np.float32)
            read = [
                ranges._read_latent(s, quality, MAP, hyper) if k == WITH_Z else blank
                for s, k in zip(stacks, kinds, strict=True)
            ]
            x = torch.from_numpy(np.stack(whole)).to(there.device, dtype)
            base = np.stack([np.zeros_like(whole[0]) if p is None else p for p in previous])
            qualities = torch.full((size,), quality - 1, device=there.device)
            t = time.perf_counter()
            z = net.analysis(x, qualities)
            z_read = torch.from_numpy(np.stack(read)).to(there.device, dtype)
            kind = torch.tensor(kinds, device=there.device)
            found = net.indices(x, torch.from_numpy(base).to(there.device, dtype), z_read, qualities, kind, True)
            z_own, scale, quarters = z.float().cpu().numpy(), *(v.float().cpu().numpy() for v in found)
            of_network += time.perf_counter() - t
            for i in range(size):
                walk = Predicted(hyper, scale[i], quarters[i], previous[i] if kinds[i] >= DELTA else None)
                symbols = ranges._read(stacks[i], walk)
                bad = np.count_nonzero(symbols.reshape(whole[i].shape) != whole[i])
                from_cpu += bad + (not stacks[i].is_empty() and not bad)
                told = [ranges._Told(np.array([kinds[i]], np.int32), hyper._kind)]
                told += ranges._tell_latent(z_own[i], quality, hyper) if kinds[i] == WITH_Z else []
                data = ranges._code(told + ranges._tell(whole[i].reshape(len(whole[i]), -1), walk))
                known = None if previous[i] is None else previous[i].reshape(len(whole[i]), -1)
                back = ranges.decode(data, known, 0, 1, MAP, quality, hyper)
                bad = np.count_nonzero(back.symbols.reshape(whole[i].shape) != whole[i])
                from_device += bad + ((back.damaged or data != of_cpu[i]) and not bad)
            done += size
            symbols_in_all += x.numel()
    say(
        "range symbols",
        device=there.device.type,
        network=str(dtype).removeprefix("torch."),
        latents=done,
        symbols=symbols_in_all,
        quantised_otherwise=rounded,
        wrong_cpu_to_device=from_cpu,
        wrong_device_to_cpu=from_device,
        seconds=time.perf_counter() - started,
        network_seconds=of_network,
    )
    return done > 0 and not any((rounded, from_cpu, from_device))


def random_latents(model: Any, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """float32 (count, C, *MAP) with channels of falling spread, loud and quiet ones, and what lies near them."""
    spread = 8 / (1 + torch.arange(model.channels) / 6) / model.gain(model.default_quality).cpu()
    loudness = torch.randn(count, 1, 1, 1, generator=generator).mul(1.2).exp()
    shape = (count, model.channels, *MAP)
    y = torch.randn(shape, generator=generator) * spread.view(1, -1, 1, 1) * loudness
    return y, y + 0.2 * torch.randn(shape, generator=generator) * spread.view(1, -1, 1, 1) * loudness


# Pictures


def picture(width: int, height: int, shift: int = 0) -> np.ndarray:
    """uint8 (H, W, 3): colour gradients, edges, texture and grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x = x + shift
    waves = np.stack([np.sin(x / a + y / b) for a, b in ((90, 140), (60, -70), (-40, 110))], -1)
    fine = 0.35 * np.sin(x / 3.1) * np.sin(y / 4.3) * (np.sin(x / 200) > 0)
    boxes = ((x // 64 + y // 48) % 3 - 1) * 0.4
    shown = 127 + 70 * waves + 60 * (fine + boxes)[..., None]
    grain = rng.integers(-4, 5, (height, width, 3), np.int16)
    return (shown + grain).clip(0, 255).astype(np.uint8)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean())
    return 10 * np.log10(255**2 / error) if error else 100.0


def check_pictures(models: dict[str, Any], sizes: list[tuple[int, int]]) -> bool:
    """models: by name, the first is what the others are compared with. Whether all pictures are near enough."""
    good = True
    reference = next(iter(models.values()))
    quality = reference.default_quality
    for width, height in sizes:
        source = picture(width, height)
        symbols = quantise(reference.analyse(source[None])[0], reference.gain(quality))
        shown: dict[str, np.ndarray] = {}
        for name, model in models.items():
            latent = dequantise(symbols, model.inverse(quality))
            shown[name] = model.synthesise(latent[None], width, height)[0]
            own = quantise(model.analyse(source[None])[0], model.gain(quality))
            near = psnr_db(shown[name], next(iter(shown.values())))
            good = good and near >= LEAST_PSNR_DB
            say(
                "picture",
                model=name,
                width=width,
                height=height,
                psnr_to_source_db=psnr_db(shown[name], source),
                psnr_to_first_db=near,
                symbols_otherwise=float((own != symbols).mean()),
            )
    return good


def check_streams(here: Any, there: Any, size: tuple[int, int]) -> bool:
    """A short video through Encoder here and Decoder there, and back. Whether every keyframe's symbols came across."""
    frames = [Frame(picture(*size, shift=2 * i), i * TICKS_PER_S // 25) for i in range(9)]
    good = True
    for a, b in ((here, there), (there, here)):
        encoder, decoder = Encoder(a, *size, n=4, coder="range"), Decoder(b)
        wrong, shown = 0, []
        for packet in (p for f in (*frames, None) for p in (encoder.flush() if f is None else encoder.push(f))):
            shown += list(decoder.push(packet))
            assert encoder._symbols is not None and decoder._symbols is not None
            wrong += int(np.count_nonzero(encoder._symbols != decoder._symbols))
        good = good and not wrong and len(shown) == len(frames) and not decoder.damaged_slices
        near = float(np.mean([psnr_db(f.rgb, s.rgb) for f, s in zip(frames, shown, strict=True)]))
        say(
            "stream",
            encoded_on=f"{a.device.type} {a.dtype}",
            decoded_on=f"{b.device.type} {b.dtype}",
            wrong=wrong,
            psnr_db=near,
        )
    return good


# Speed


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(call: Callable[[], Any], device: torch.device, length_s: float) -> float:
    """Of one call, the median of five runs that together take about length_s; warmed up before."""
    for _ in range(2):
        call()
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    once = max(time.perf_counter() - started, 1e-6)
    repeats = max(1, int(length_s / 5 / once))
    samples = []
    for _ in range(5 if once < length_s else 1):
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronise(device)
        samples.append((time.perf_counter() - started) / repeats)
    return float(np.median(samples))


def forward(network: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype, cast: bool) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=cast):
            return network(x)

    return run


def graphed(network: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Callable[[], Tensor], Tensor]:
    """One CUDA graph of network(x), and where its result is."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        for _ in range(3):
            network(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        result = network(x)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay, result


class Bench:
    """Frames a second of networks on tensors already on the device, one line for each way to run them."""

    def __init__(self, device: torch.device, dtype: torch.dtype, clock: Clock, length_s: float) -> None:
        self.device, self.dtype, self.clock, self.length_s = device, dtype, clock, length_s

    def add(self, what: str, way: str, batch: int, size: tuple[int, int], make: Callable[[], Callable[[], Any]]) -> None:
        described: dict[str, Any] = {"what": what, "way": way, "batch": batch, "width": size[0], "height": size[1]}
        if self.clock.left() < 2 * self.length_s:
            say("speed", **described, skipped="no time left")
            return
        started = time.perf_counter()
        try:
            call = make()
            call()
            synchronise(self.device)
            prepared = time.perf_counter() - started
            one = seconds_of(call, self.device, self.length_s)
        except (RuntimeError, NotImplementedError, OSError) as error:  # no compiler, no memory: the other lines stand
            say("speed", **described, failed=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}")
            return
        megapixels = batch * size[0] * size[1] / 1e6
        peak = {"gpu_peak_mb": torch.cuda.max_memory_allocated() / 1e6} if self.device.type == "cuda" else {}
        say(
            "speed", **described, fps=batch / one, ms=1000 * one, ms_per_mp=1000 * one / megapixels, prepared_s=prepared, **peak
        )

    def network(self, what: str, net: Callable[[Tensor], Tensor], x: Tensor, size: tuple[int, int], ways: list[str]) -> None:
        """net: weights of the device's type, run without autocast. x: its input."""
        batch = len(x)
        run = forward(net, self.device, self.dtype, cast=False)
        if "plain" in ways:
            self.add(what, "plain", batch, size, lambda: lambda: run(x))
        if "graph" in ways and self.device.type == "cuda":
            self.add(what, "graph", batch, size, lambda: graphed(run, x)[0])
        if "compile" in ways:
            self.add(what, "compile", batch, size, lambda: self._compiled(net, x, None))
        if "compile+graph" in ways and self.device.type == "cuda":
            self.add(what, "compile+graph", batch, size, lambda: self._compiled(net, x, "max-autotune-no-cudagraphs"))

    def _compiled(self, net: Callable[[Tensor], Tensor], x: Tensor, mode: str | None) -> Callable[[], Any]:
        torch._dynamo.reset()
        faster = torch.compile(net, dynamic=False)
        run = forward(faster, self.device, self.dtype, cast=False)
        run(x)
        return graphed(run, x)[0] if mode else lambda: run(x)


def of_type(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    return net.to(dtype).to(memory_format=torch.channels_last).eval()


def latent_like(channels: int, size: tuple[int, int], batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    h, w = -(-size[1] // 16), -(-size[0] // 16)
    return torch.randn(batch, channels, h, w, device=device).to(dtype).contiguous(memory_format=torch.channels_last)


def picture_like(size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    x = torch.rand(1, 3, -(-size[1] // 16) * 16, -(-size[0] // 16) * 16, device=device)
    return x.mul(2).sub(1).to(dtype).contiguous(memory_format=torch.channels_last)


def measure_manifold(model: Any, sizes: list[tuple[int, int]], bench: Bench) -> None:
    """As the codec runs it, pixels in host memory to latents and back; every coder; then the networks alone."""
    device = model.device
    for size in sizes:
        shown = picture(*size)[None]
        y = model.analyse(shown)
        for what, call in (
            ("analysis", lambda shown=shown: model.analyse(shown)),
            ("synthesis", lambda y=y, size=size: model.synthesise(y, *size)),
        ):
            bench.add(f"{model.name} {what}", "manifold", 1, size, lambda call=call: call)
        symbols = quantise(y[0], model.gain(model.default_quality))
        given = symbols, None, 1, model.default_quality, model.hyper
        data = ranges.encode(*given)[0]
        read = data, None, 0, 1, symbols.shape[1:], model.default_quality, model.hyper
        bench.add("range encode", "numpy", 1, size, lambda given=given: lambda: ranges.encode(*given))
        bench.add("range decode", "numpy", 1, size, lambda read=read: lambda: ranges.decode(*read))
    net = of_type(manifold.load(model.info.path, device.type, precision="float32").net, bench.dtype)
    for size in sizes:
        last = size == sizes[-1]
        x, y = picture_like(size, device, bench.dtype), latent_like(model.channels, size, 1, device, bench.dtype)
        bench.network(f"{model.name} analysis", net.analysis, x, size, ["plain", "graph"])
        bench.network(f"{model.name} synthesis", net.synthesis, y, size, ["plain", "graph"])
        for batch in (4, 8) if last and device.type == "cuda" else ():
            y = latent_like(model.channels, size, batch, device, bench.dtype)
            bench.network(f"{model.name} synthesis", net.synthesis, y, size, ["plain", "graph"])


def measure_compiled(model: Any, size: tuple[int, int], bench: Bench) -> None:
    net = of_type(manifold.load(model.info.path, model.device.type, precision="float32").net, bench.dtype)
    ways = ["compile", "compile+graph"]
    y = latent_like(model.channels, size, 1, model.device, bench.dtype)
    bench.network(f"{model.name} synthesis", net.synthesis, y, size, ways)
    bench.network(f"{model.name} analysis", net.analysis, picture_like(size, model.device, bench.dtype), size, ways)


def measure_paper(size: tuple[int, int], bench: Bench, ways: list[str], *, small: bool) -> None:
    """The full-size generator with random weights; a small one where `small`."""
    config = PaperConfig(width=8, blocks=2, hyper=16, channels=32) if small else PaperConfig()
    torch.manual_seed(0)
    with bench.device, torch.inference_mode():
        hific = Hific(config)
        count = sum(p.numel() for p in hific.parameters())
        generator: Any = of_type(hific.generator, bench.dtype)
        encoder: Any = of_type(hific.encoder, bench.dtype)
        del hific
    y = latent_like(config.channels, size, 1, bench.device, bench.dtype)
    say("model", what="hific paper", parameters=count, generator=sum(p.numel() for p in generator.parameters()))
    bench.network("hific generator", generator, y, size, ways)
    if "compile" not in ways:
        bench.network("hific encoder", encoder, picture_like(size, bench.device, bench.dtype), size, ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--quick", action="store_true", help="few latents, small pictures, a small generator: tries the script")
    parser.add_argument("--seconds", type=float, default=55.0, help="speeds that would begin later are skipped")
    parser.add_argument("--latents", type=int, help="random latents; 10000, with --quick 60")
    parser.add_argument("--manifold", default="general", help="a name or file; one with a hyperprior")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of these, parted by commas")
    given = parser.parse_args()
    if not set(given.parts.split(",")) <= set(PARTS):
        parser.error(f"--parts {given.parts}: choose from {','.join(PARTS)}")
    clock = Clock(given.seconds)
    count = given.latents or (60 if given.quick else 10_000)
    try:
        device = choose_device(given.device)
    except McodeError:
        parser.error(f"{given.device}: not available on this machine; cpu is")
    try:
        models = {
            "cpu float32": manifold.load(given.manifold, "cpu", precision="float32"),
            f"{device.type} float32": manifold.load(given.manifold, device.type, precision="float32"),
            f"{device.type} auto": manifold.load(given.manifold, device.type),
        }
    except McodeError as error:
        parser.error(str(error))
    here, there = models["cpu float32"], models[f"{device.type} auto"]
    if here.hyper is None or here.stride is None:
        parser.error(f"manifold {here.name} has no hyperprior")
    say(
        "machine",
        processor=platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        gpu=torch.cuda.get_device_name() if device.type == "cuda" else None,
        torch=torch.__version__,
        python=platform.python_version(),
        manifold=f"{here.name} {here.id}",
        precision=str(there.dtype),
    )
    sizes = [(160, 96), (320, 176)] if given.quick else list(SIZES)
    good, parts = True, given.parts.split(",")
    if "symbols" in parts:
        # One way of summing is proof for all. float32, the coder's own type, is tried on fewer.
        # Where there are speeds to measure too, they keep 45 % of the time.
        share = 0.55 if len(parts) > 1 else 1.0
        for dtype, tried, seconds in ((torch.float64, count, 0.8), (torch.float32, min(count, 2000), 0.2)):
            good = check_symbols(here, there, tried, dtype, Clock(share * seconds * given.seconds)) and good
    if "pictures" in parts:
        good = check_pictures(models, sizes[:2]) and good
        good = check_streams(here, there, sizes[0]) and good
    torch.backends.cudnn.benchmark = True  # each shape is run many times
    bench = Bench(device, there.dtype, clock, 0.05 if given.quick else 0.4)
    if "speed" in parts:
        measure_manifold(there, sizes, bench)
        measure_paper(sizes[-1], bench, ["plain", "graph"], small=given.quick)
    if "compile" in parts:
        measure_compiled(there, sizes[-1], bench)
        measure_paper(sizes[-1], bench, ["compile", "compile+graph"], small=given.quick)
    say("done", good=good, seconds=given.seconds - clock.left())
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
