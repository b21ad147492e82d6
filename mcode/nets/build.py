"""Networks from a manifold's config and tensors: the one place that knows every kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .layers import channels_last

if TYPE_CHECKING:
    from .compact import Compact
    from .hific import CompactConfig
    from .linear import Linear
    from .ncode import NCode
    from .paper import Hific, PaperConfig
    from .residual import Residual

    Network = Linear | NCode | Residual | Compact | Hific

Net = TypeVar("Net", bound=nn.Module)
_COUNTER = "num_batches_tracked"


def build(
    kind: str, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], device: torch.device
) -> tuple[Network, Tensor, Tensor]:
    """(network with .analysis and .synthesis in eval mode, gain, inverse), the last two (qualities, C) float32.

    With the config's `quantiser = "mean"` (family paper) it also has .sent and .y_hat, see nets.paper.MeanHific.
    Raises KeyError, RuntimeError, TypeError, ValueError or ConfigError where tensors and config do not fit, before anything
    of the config's sizes takes memory: the tensors are there already, so the networks are never larger than the file.
    """
    state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()}
    if kind == "linear":
        return _linear(config, state, device)
    if kind == "ncode":
        return _ncode(config, state, device)
    if kind == "hific":
        return _hific(config, state, device)
    raise ValueError(f"no network of kind {kind}")


def _checked(make: Callable[[], Net], state: Mapping[str, Tensor]) -> Net:
    """make(), if its state is of these shapes. It is made without memory first."""
    with torch.device("meta"), _Unfilled():
        wanted = {k: tuple(v.shape) for k, v in make().state_dict().items() if not k.endswith(_COUNTER)}
    for name in [*wanted, *state]:
        found = tuple(state[name].shape) if name in state else None
        if found is None or name not in wanted:
            raise ValueError(f"{name!r} is {'missing' if found is None else 'no part of the networks'}")
        if found != wanted[name]:
            raise ValueError(f"{name!r} is {found}, not {wanted[name]}")
    return make()


class _Unfilled(TorchFunctionMode):
    """Without these, whose results no shape depends on: for tensors without memory PyTorch computes them in Python, and
    imports its compiler first, which takes two seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.sub, Tensor.__sub__):
            return args[0]
        if func is torch.eye and "out" in kwargs:
            return kwargs["out"]
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _check_blocks(state: Mapping[str, Tensor], *counts: int) -> None:
    """Residual blocks take time even where they take no memory; each has four tensors or more."""
    if min(counts) < 0 or 4 * sum(counts) > len(state):
        raise ValueError(f"{sum(counts):,} residual blocks, and {len(state)} tensors")


def _check_frame(config: Mapping[str, Any], size: Sequence[int]) -> None:
    if list(config["frame_size"]) != list(size):
        raise ValueError(f"frame_size is {list(config['frame_size'])}, and that of the networks is {list(size)}")


def _check_gain(gain: Tensor, channels: int) -> None:
    if gain.ndim != 2 or gain.shape[1] != channels:
        raise ValueError(f"gains are {tuple(gain.shape)}, and the networks have {channels} channels")


def _linear(config: Mapping[str, Any], state: dict[str, Tensor], device: torch.device) -> tuple[Linear, Tensor, Tensor]:
    from .linear import Linear

    (width, height), m, qualities = config["frame_size"], config["m"], config["qualities"]
    if type(m) is not int or not 1 <= m <= 3 * width * height:
        raise ValueError(f"m is no whole number from 1 to the picture's {3 * width * height} values")
    net = _checked(lambda: Linear(m, width, height, qualities), state)
    net.load_state_dict(state)
    net.to(device).eval().prepare()
    inverse = net.step.float().unsqueeze(1).expand(-1, m).contiguous()
    return net, 1 / inverse, inverse


def _ncode(
    config: Mapping[str, Any], state: dict[str, Tensor], device: torch.device
) -> tuple[NCode | Residual, Tensor, Tensor]:
    if config["network"].get("family") == "residual":
        return _residual(config, state, device)
    from ..config import from_dict
    from .ncode import NCode, NCodeConfig, levels

    network = from_dict(config["network"], NCodeConfig, source="manifold")
    _check_frame(config, (network.size, network.size))
    net = _checked(lambda: NCode(network), state)
    # Training's counters, which the file leaves out.
    counters = {k: v for k, v in net.state_dict().items() if k.endswith(_COUNTER)}
    net.load_state_dict({k: v.float() for k, v in state.items()} | counters)
    channels_last(net, device).eval()
    gain = levels()[: int(config["qualities"])].unsqueeze(1).expand(-1, network.m).contiguous().to(device)
    return net, gain, 1 / gain


def _residual(config: Mapping[str, Any], state: dict[str, Tensor], device: torch.device) -> tuple[Residual, Tensor, Tensor]:
    from ..config import from_dict
    from .residual import Residual, ResidualConfig

    network = from_dict(config["network"], ResidualConfig, source="manifold")
    _check_frame(config, network.frame_size)
    _check_blocks(state, network.blocks)
    if network.rows > network.pixels:
        raise ValueError(f"{network.rows} components of a picture's {network.pixels} values")
    gain = state.pop("gain").float().to(device)
    _check_gain(gain, network.m)
    net = _checked(lambda: Residual(network), state)
    net.load_state_dict({k: v if k == "basis" else v.float() for k, v in state.items()})
    channels_last(net, device).eval().prepare()
    return net, gain, 1 / gain


def _hific(config: Mapping[str, Any], state: dict[str, Tensor], device: torch.device) -> tuple[Compact | Hific, Tensor, Tensor]:
    from ..config import from_dict
    from .hific import CompactConfig
    from .paper import PaperConfig, sent_channels

    values, quantiser = dict(config["network"]), config.get("quantiser")
    family = values.get("family", "compact")
    if quantiser not in (None, "mean") or (quantiser and family != "paper"):
        raise ValueError(f"no quantiser {quantiser} of family {family}")
    gain, inverse = state.pop("gain").float().to(device), state.pop("inverse").float().to(device)
    make: Callable[[], Compact | Hific]  # as both give it below: from two types mypy would infer any module
    if family == "compact":
        values.pop("family", None)
        compact = from_dict(values, CompactConfig, source="manifold")
        _check_blocks(state, *compact.analysis_blocks, *compact.synthesis_blocks)
        channels, make = compact.channels, lambda: _compact(compact)
    elif family == "paper":
        paper = from_dict(values, PaperConfig, source="manifold")
        _check_blocks(state, paper.blocks)
        around_mean = quantiser == "mean"
        channels, make = sent_channels(paper) if around_mean else paper.channels, lambda: _paper(paper, around_mean)
    else:
        raise ValueError(f"no hific networks of family {family}")
    _check_gain(gain, channels)
    net = _checked(make, state)
    net.load_state_dict({k: v.float() for k, v in state.items()})
    channels_last(net, device).eval()
    return net, gain, inverse


def _compact(network: CompactConfig) -> Compact | Hific:
    from .compact import Compact

    return Compact(
        network.channels,
        network.analysis_widths,
        network.analysis_blocks,
        network.synthesis_widths,
        network.synthesis_blocks,
    )


def _paper(network: PaperConfig, around_mean: bool) -> Compact | Hific:
    from .paper import Hific, MeanHific

    return MeanHific(network) if around_mean else Hific(network)
