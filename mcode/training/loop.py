"""What every training loop shares: processes, an optimiser's step, averaged weights, the log, exact checkpoints.

A checkpoint is one safetensors file: `model.NAME` (parameters and buffers), `ema.NAME`, and for each parameter that
Adam has moved `exp_avg.NAME`, `exp_avg_sq.NAME` and `updates.NAME`; step, config as JSON, what tells the data from others
(`footage.data_entry`), and where there is one the id of the manifold it started from, in the metadata.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import from_dict, to_dict
from ..errors import InputError, McodeError
from ..latents import fast_dtype
from ..whole import remove_partials, whole_tensors

if sys.platform != "win32":
    import fcntl

Report = Callable[[dict[str, float]], None]
CHECKPOINT, LOCK = "checkpoint.safetensors", ".lock"
LOG, SAMPLES = "log.jsonl", "samples"
LARGEST_SEED = 2**32 - 1
MAY_CHANGE = {
    *("learning_rate", "discriminator_rate", "final_rate", "warmup", "decay_steps", "clip", "revive_every"),
    *("checkpoint_every", "bfloat16", "perceptual_file"),
    *("name", "zero_margin", "default_quality"),  # of what is exported
    "easy_steps",  # which `scripts/ablation.py --steps` sets with the steps
}
"""Keys, of whatever table, that a training may go on with other values of."""


def check_not_negative(config: Any, *names: str) -> None:
    """Raises ValueError for the first of these fields, of those there are, that is below 0."""
    for name in names:
        if getattr(config, name, 0) < 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it is 0 or more")


def check_numbers(config: Any) -> None:
    """Raises ValueError where a number that configurations share by name cannot be used."""
    if not 0 <= getattr(config, "seed", 0) <= LARGEST_SEED:
        raise ValueError(f"seed is {config.seed}; it is 0 to {LARGEST_SEED}")
    for name in ("learning_rate", "discriminator_rate", "clip"):
        value = getattr(config, name, None)
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}; it is above 0")
    check_not_negative(config, "final_rate", "warmup", "decay_steps")
    momentum, ema = getattr(config, "momentum", 0.0), getattr(config, "ema", 0.0)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; it is 0 or more, and below 1")
    if not 0 <= ema <= 1:
        raise ValueError(f"ema is {ema}; it is from 0 to 1")


def join_workers(device: str) -> tuple[int, int]:
    """(number of processes, this one's rank); joins the group that torchrun describes in the environment. Raises InputError
    where some of it is missing."""
    if _number_of("WORLD_SIZE", "1") <= 1:
        return 1, 0
    for name in ("RANK", "MASTER_PORT"):
        _number_of(name)
    if not os.environ.get("MASTER_ADDR"):
        raise InputError("no MASTER_ADDR in the environment, where torchrun sets it; start with torchrun, or unset WORLD_SIZE")
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.set_device(_number_of("LOCAL_RANK", "0"))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_cuda else "gloo")
    return dist.get_world_size(), dist.get_rank()


def _number_of(variable: str, default: str = "") -> int:
    text = os.environ.get(variable, default)
    if not text.isdecimal():
        given = f"{variable} = {text}" if text else f"no {variable}"
        raise InputError(f"{given} in the environment, where torchrun sets a number; start with torchrun, or unset WORLD_SIZE")
    return int(text)


def leave_workers() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def alone_in(out: Path, *files: str) -> Iterator[None]:
    """Keeps other trainings out of the folder `out`, which is made, and removes what killed ones have left of `files`. Raises
    InputError where another training writes there. Where the system or its disk has no locks there is none of that."""
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK
    try:
        if sys.platform == "win32":
            yield
            return
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(file.fileno()).st_nlink:  # its holder has just ended, and another may come
                    raise BlockingIOError
            except BlockingIOError as error:
                given = f"{out}: another training writes there"
                raise InputError(f"{given}; wait until it has ended, or choose another --out") from error
            except OSError:
                pass
            else:
                for name in files:
                    remove_partials(out / name)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        if made:  # and nothing came of it
            with suppress(OSError):
                out.rmdir()


def autocast(device: torch.device, wanted: bool = True) -> torch.autocast:
    """bfloat16 where it is wanted and fast (`latents.fast_dtype`), else float32, which is many times faster than emulated
    bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and fast_dtype(device) == torch.bfloat16)


def seed_step(seed: int, step: int, worker: int) -> None:
    """Makes the random numbers of a step depend on nothing before it: what lets a run resume exactly."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, worker)).generate_state(1, np.uint64)[0]))


def update(optimiser: Optimizer, loss: Tensor, *, step: int, workers: int, clip: float | None = None) -> float:
    """One step of `optimiser` on `loss`, with gradients averaged over processes and clipped; returns their norm.

    Raises McodeError, before anything has changed, when loss or gradients are not finite.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if workers > 1:
        _average_gradients(parameters, workers)
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip).item()
    if not math.isfinite(loss.item()) or not math.isfinite(norm):
        raise McodeError(
            f"training stopped at step {step}: the loss is {loss.item()}, its gradient {norm}; "
            "resume with a lower learning_rate, or train anew with one where the checkpoint stops at once"
        )
    optimiser.step()
    return norm


def _average_gradients(parameters: Iterable[nn.Parameter], workers: int) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= workers
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def smooth(ema: Mapping[str, Tensor], parameters: Mapping[str, Tensor], most: float, step: int) -> None:
    """Moves every average towards its parameter, with decay `most`, less while `step` is small."""
    decay = min(most, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.values()), [parameters[k].detach() for k in ema], 1 - decay)


def averages(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """float32 copies to smooth into: of the parameters, or of the averages in a checkpoint's tensors."""
    ema = {k: v.detach().clone().float() for k, v in parameters.items()}
    if saved is not None:
        for k, average in ema.items():
            average.copy_(saved[f"ema.{k}"])
    return ema


class Log:
    """OUT/log.jsonl, and TensorBoard's events in OUT where it is installed. Values are smoothed over some 50 steps.

    Only the first process writes. Rows of steps beyond `first`, which a killed run has left, are removed.
    """

    def __init__(self, out: Path, first: int, worker: int, report: Report | None) -> None:
        self._path, self._active, self._report = out / LOG, worker == 0, report
        self._values: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._board = None
        out.mkdir(parents=True, exist_ok=True)
        if not self._active:
            return
        if self._path.exists():
            rows = [row for row in self._path.read_text().splitlines() if _step_of(row) <= first]
            self._path.write_text("".join(f"{row}\n" for row in rows))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        with self._shown():
            self._board = SummaryWriter(str(out), purge_step=first + 1)

    def add(self, **values: float) -> None:
        for key, value in values.items():
            self._values[key] = self._values.get(key, 0.0) * 0.98 + 0.02 * value
            self._weights[key] = self._weights.get(key, 0.0) * 0.98 + 0.02

    def write(self, step: int, **more: float) -> None:
        if not self._active:
            return
        row = {k: round(v / self._weights[k], 5) for k, v in self._values.items()} | {"step": step} | more
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        with self._shown():
            if self._board is not None:
                for key, value in row.items():
                    self._board.add_scalar(key, value, step)
        if self._report:
            self._report(row)

    def picture(self, step: int, rgb: Any) -> None:
        """uint8 (H, W, 3) to OUT/samples/STEP.png."""
        if not self._active:
            return
        import cv2

        folder = self._path.parent / SAMPLES
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{step:08d}.png"), rgb[..., ::-1])
        with self._shown():
            if self._board is not None:
                self._board.add_image("samples", rgb, step, dataformats="HWC")

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Ends TensorBoard's part where its files cannot be written: the training goes on without."""
        try:
            yield
        except OSError:
            self._board = None


def beside(x: Tensor, x_hat: Tensor) -> Any:
    """Originals above reconstructions, both (B, 3, H, W) in [-1, 1]: uint8 (2 H, B W, 3)."""
    both = torch.stack([x, x_hat.detach()]).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    rows, count, _, height, width = both.shape
    return both.permute(0, 3, 1, 4, 2).reshape(rows * height, count * width, 3).cpu().numpy()


def _step_of(row: str) -> float:
    try:
        return json.loads(row)["step"]
    except (ValueError, KeyError, TypeError):  # cut short by a kill
        return math.inf


def begin(
    out: Path, resume: bool, model: nn.Module, config: Any, stages: Sequence[str] = ("optimiser.steps",)
) -> tuple[int, dict[str, Tensor] | None]:
    """(step to go on from, tensors of the checkpoint), with the model's weights loaded; (0, None) where there is none.

    config: a dataclass; stages: its keys of steps, in order. Raises InputError where a checkpoint stands in `out` and resume is
    False, and for one damaged, of another network or of another configuration, but for MAY_CHANGE and the steps of a stage that
    is not over.
    """
    path = out / CHECKPOINT
    if not path.exists():
        return 0, None
    if not resume:
        raise InputError(f"{path}: exists; go on from it with --resume or choose another --out")
    step, stored, tensors = read_checkpoint(path)
    try:
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    except RuntimeError as error:
        raise InputError(f"{path}: a checkpoint of other networks than this configuration's; choose another --out") from error
    _check_same(path, step, from_dict(stored, type(config), source=str(path)), config, stages)
    return step, tensors


def _check_same(path: Path, step: int, before: Any, now: Any, stages: Sequence[str]) -> None:
    old, new = (dict(_keys(to_dict(each))) for each in (before, now))
    ends = list(accumulate(old[stage] for stage in stages))
    open_stages = [stage for stage, end in zip(stages, ends, strict=True) if step <= end]
    for key, value in new.items():
        if value != old[key] and key not in open_stages and key.rpartition(".")[2] not in MAY_CHANGE:
            given = f"{path}: is of a training with {key} = {json.dumps(old[key])}, not {json.dumps(value)}"
            raise InputError(f"{given}; set it back, or choose another --out")
    if open_stages and (done := step - sum(old[stage] for stage in stages if stage not in open_stages)) > new[open_stages[0]]:
        given = f"{open_stages[0]} = {new[open_stages[0]]}, and {path} has {done} of them behind it"
        raise InputError(f"{given}; set {done} or more, or choose another --out")


def _keys(values: Mapping[str, Any], table: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested dicts."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{table}{key}.")
        else:
            yield f"{table}{key}", value


def read_metadata(path: Path) -> dict[str, str]:
    """step, config and what else `save_checkpoint` was given. Raises InputError."""
    try:
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: no readable checkpoint ({error})") from error


def read_checkpoint(path: Path) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """Step, config as nested dicts, and tensors. Raises InputError."""
    metadata = read_metadata(path)
    try:
        return int(metadata["step"]), json.loads(metadata["config"]), load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no readable checkpoint ({error})") from error


def save_checkpoint(
    path: Path,
    model: nn.Module,
    ema: Mapping[str, Tensor],
    optimisers: Sequence[Optimizer],
    step: int,
    config: Any,
    **more: str,
) -> None:
    """Written whole or not at all: a kill leaves the checkpoint before. config: a dataclass; more: of the metadata."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"ema.{k}": v for k, v in ema.items()}
    for name, parameter in model.named_parameters():
        for optimiser in optimisers:
            if state := optimiser.state.get(parameter):
                tensors[f"exp_avg.{name}"], tensors[f"exp_avg_sq.{name}"] = state["exp_avg"], state["exp_avg_sq"]
                tensors[f"updates.{name}"] = state["step"]
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with whole_tensors(path) as part:
        save_file(plain, part, {"step": str(step), "config": json.dumps(to_dict(config))} | more)


def halved(
    tensors: Mapping[str, Tensor],
    whose: str = "this training gives no manifold",
    remedy: str = "train anew with a lower learning_rate",
) -> dict[str, Tensor]:
    """In float16, as manifolds keep weights. Raises InputError where one holds values beyond its range, or no numbers."""
    stored = {name: tensor.half() for name, tensor in tensors.items()}
    for name, tensor in stored.items():
        if not tensor.isfinite().all():
            raise InputError(f"{whose}: {name} holds values beyond half precision (65504); {remedy}")
    return stored


def load_moments(optimisers: Sequence[Optimizer], model: nn.Module, tensors: Mapping[str, Tensor] | None, step: int) -> None:
    """Adam's state from a checkpoint's tensors, in each parameter's own device and memory format.

    Checkpoints before `updates.NAME` had one update a step: `step` of them.
    """
    if tensors is None:
        return
    owners = {id(p): optimiser for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            owners[id(parameter)].state[parameter] = {
                "step": tensors.get(f"updates.{name}", torch.tensor(float(step))),
                "exp_avg": torch.empty_like(parameter).copy_(tensors[f"exp_avg.{name}"]).detach(),
                "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"exp_avg_sq.{name}"]).detach(),
            }
