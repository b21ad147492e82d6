"""Networks from a manifold's config and tensors: the one place that knows every kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def build(
    kind: str, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], device: torch.device
) -> tuple[nn.Module, Tensor, Tensor]:
    """(network with .analysis and .synthesis in eval mode, gain, inverse), the last two (qualities, C) float32.

    With the config's `quantiser = "mean"` (family paper) it also has .sent and .y_hat, see nets.paper.MeanHific.
    Raises KeyError, RuntimeError or ValueError where tensors and config do not fit.
    """
    state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()}
    if kind == "linear":
        return _linear(config, state, device)
    if kind == "ncode":
        return _ncode(config, state, device)
    if kind == "hific":
        return _hific(config, state, device)
    raise ValueError(f"no network of kind {kind}")


def _linear(config: Mapping[str, Any], state: dict[str, Tensor], device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    from .linear import Linear

    width, height = config["frame_size"]
    net = Linear(int(config["m"]), width, height, int(config["qualities"]))
    net.load_state_dict(state)
    net.to(device).eval().prepare()
    inverse = net.step.float().unsqueeze(1).expand(-1, int(config["m"])).contiguous()
    return net, 1 / inverse, inverse


def _ncode(config: Mapping[str, Any], state: dict[str, Tensor], device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    if config["network"].get("family") == "residual":
        return _residual(config, state, device)
    from ..config import from_dict
    from .ncode import NCode, NCodeConfig, levels

    network = from_dict(config["network"], NCodeConfig, source="manifold")
    net = NCode(network)
    # Training's counters, which the file leaves out.
    counters = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    net.load_state_dict({k: v.float() for k, v in state.items()} | counters)
    net.to(device, memory_format=torch.channels_last).eval()
    gain = levels()[: int(config["qualities"])].unsqueeze(1).expand(-1, network.m).contiguous().to(device)
    return net, gain, 1 / gain


def _residual(config: Mapping[str, Any], state: dict[str, Tensor], device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    from ..config import from_dict
    from .residual import Residual, ResidualConfig

    net = Residual(from_dict(config["network"], ResidualConfig, source="manifold"))
    gain = state.pop("gain").float().to(device)
    net.load_state_dict({k: v if k == "basis" else v.float() for k, v in state.items()})
    net.to(device, memory_format=torch.channels_last).eval().prepare()
    return net, gain, 1 / gain


def _hific(config: Mapping[str, Any], state: dict[str, Tensor], device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    values, quantiser = dict(config["network"]), config.get("quantiser")
    family = values.get("family", "compact")
    if quantiser not in (None, "mean") or (quantiser and family != "paper"):
        raise ValueError(f"no quantiser {quantiser} of family {family}")
    gain, inverse = state.pop("gain").float().to(device), state.pop("inverse").float().to(device)
    if family == "compact":
        values.pop("family", None)
        net = _compact(values)
    elif family == "paper":
        net = _paper(values, around_mean=quantiser == "mean")
        if quantiser and gain.shape[1] != net.sent_channels:
            raise ValueError(f"{gain.shape[1]} gains for {net.sent_channels} channels")
    else:
        raise ValueError(f"no hific networks of family {family}")
    net.load_state_dict({k: v.float() for k, v in state.items()})
    net.to(device, memory_format=torch.channels_last).eval()
    return net, gain, inverse


def _compact(values: Mapping[str, Any]) -> nn.Module:
    from ..config import from_dict
    from .compact import Compact
    from .hific import CompactConfig

    network = from_dict(values, CompactConfig, source="manifold")
    return Compact(
        network.channels,
        network.analysis_widths,
        network.analysis_blocks,
        network.synthesis_widths,
        network.synthesis_blocks,
    )


def _paper(values: Mapping[str, Any], *, around_mean: bool) -> nn.Module:
    from ..config import from_dict
    from .paper import Hific, MeanHific, PaperConfig

    return (MeanHific if around_mean else Hific)(from_dict(values, PaperConfig, source="manifold"))
