"""Distances between pictures in trained networks' features: VGG19 (training and judging), MobileNet-v1 (judging only).

Both are LPIPS's form without its learned weights (Zhang et al. 2018, equation 1, w = 1): at every position the feature vector
is scaled to unit length, the squared difference is summed over channels, and that is averaged over positions and layers.
They are not LPIPS, and are named by network and layer.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mcode.errors import InputError

WEIGHTS_VARIABLE = "MCODE_PERCEPTUAL"
"""Environment variable naming the folder with the weight files below."""
VGG_FILE = "vgg19_conv3.safetensors"
MOBILENET_FILE = "mobilenet_v1_to_pw12.safetensors"
SQUEEZENET_FILE = "squeezenet_v1.0.safetensors"

VGG_LAYERS = ("relu1_2", "relu2_2", "relu3_4")
MOBILENET_LAYERS = (1, 3, 5, 11)
VGG_SIDE, MOBILENET_SIDE = 4, 16
"""The least width and height of a picture that has a distance in those layers: the deepest one's map has a pixel then."""

SQUEEZENET_FIRES = (3, 5)

VGG_MAPS = ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_2", "relu3_3", "relu3_4")
SQUEEZENET_MAPS = ("conv1", "fire2", "fire3", "fire4", "fire5", "fire6", "fire7", "fire8", "fire9")
"""Maps of the two networks that pictures can be compared in."""
_VGG_CONVOLUTIONS = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "3_4")
_VGG_POOL_BEFORE = ("2_1", "3_1")
_MOBILENET_STRIDE_2 = (2, 4, 6, 12)
_BATCH_NORM_EPSILON = 1e-3  # Keras' MobileNet; PyTorch's default is 1e-5
_TINY = 1e-3  # shorter feature vectors are divided by this: bounds the gradient; activations are of order 1 to 1000


def weights_path(name: str, given: str | os.PathLike[str] | None = None) -> Path:
    """The weight file `name`: `given` itself (a file, or a folder holding it), else from the folder in MCODE_PERCEPTUAL.

    Raises InputError where there is none.
    """
    place = given if given is not None else os.environ.get(WEIGHTS_VARIABLE)
    remedy = f"give --perceptual DIR, or set {WEIGHTS_VARIABLE} to the folder that holds {name}"
    if not place:
        raise InputError(f"no weights for {name}: {remedy}")
    path = Path(place)
    path = path / name if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such weight file ({remedy})")
    return path


def unit_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Mean over layers and positions of the squared distance between unit feature vectors: 0 (equal) to 4 (opposite).

    a, b: one (B, C, h, w) per layer. Returns float32 (B,). Differentiable once; sums are float32
    whatever autocast says.
    """
    return torch.stack([_layer_distance(x, y) for x, y in zip(a, b, strict=True)]).mean(0)


class _UnitDistance(torch.autograd.Function):
    """Squared distance between unit feature vectors at every position, with its derivatives in closed form.

    Written out, a |a - b|^2 of normalised float32 copies took three quarters of a training step in VGG19's features: it is
    2 - 2 cos. Vectors shorter than _TINY are divided by that. Products are in the features' type, sums in float32.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        """a, b: (B, C, H, W) of one type; float32 (B, H, W)."""
        length_a, length_b = _along_channels(a, a).sqrt(), _along_channels(b, b).sqrt()
        na, nb = length_a.clamp_min(_TINY), length_b.clamp_min(_TINY)
        cosine = _along_channels(a, b) / (na * nb)
        ctx.save_for_backward(a, b, length_a, length_b, cosine)
        return ((length_a / na).square() + (length_b / nb).square() - 2 * cosine).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b, length_a, length_b, cosine = ctx.saved_tensors
        gradient = gradient.unsqueeze(1) * 2
        across = gradient / (length_a.clamp_min(_TINY) * length_b.clamp_min(_TINY))

        def one(own: Tensor, length: Tensor, other: Tensor) -> Tensor:
            along = gradient * torch.where(length > _TINY, cosine / length.clamp_min(_TINY).square(), 1 / _TINY**2)
            return torch.addcmul(own * along.to(own.dtype), other, across.to(own.dtype), value=-1)

        return (
            one(a, length_a, b) if ctx.needs_input_grad[0] else None,
            one(b, length_b, a) if ctx.needs_input_grad[1] else None,
        )


def _along_channels(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True, dtype=torch.promote_types(a.dtype, torch.float32))


def _layer_distance(a: Tensor, b: Tensor) -> Tensor:
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return _UnitDistance.apply(a, b).mean((1, 2))
    # Judging has the time, and equal pictures are at a distance of exactly 0.
    difference = functional.normalize(a.float(), dim=1, eps=_TINY) - functional.normalize(b.float(), dim=1, eps=_TINY)
    return difference.square().sum(1).mean((1, 2))


class VggFeatures(nn.Module):
    """VGG19 up to the deepest layer asked for, frozen; gradients reach the picture, so it serves as a training loss.

    rgb (B, 3, H, W) in [0, 1] -> [relu1_2 (B, 64, H, W)] [relu2_2 (B, 128, H/2, W/2)] [relu3_4 (B, 256, H/4, W/4)].
    Works under bfloat16 autocast and in channels_last. Simonyan, Zisserman 2015, configuration E.
    """

    mean_bgr: Tensor

    def __init__(self, weights: str | os.PathLike[str] | None = None, layers: Sequence[str] = ("relu3_4",)):
        super().__init__()
        if unknown := [name for name in layers if name.removeprefix("relu") not in _VGG_CONVOLUTIONS]:
            raise ValueError(f"no VGG19 layer {unknown[0]}: one of {', '.join('relu' + c for c in _VGG_CONVOLUTIONS)}")
        self.layers = tuple(layers)
        wanted = {name.removeprefix("relu") for name in layers}
        depth = 1 + max(_VGG_CONVOLUTIONS.index(name) for name in wanted)
        with _weights_of("VGG19", weights_path(VGG_FILE, weights)) as tensors:
            self.convolutions = nn.ModuleDict(
                {name: _convolution(tensors, f"conv{name}") for name in _VGG_CONVOLUTIONS[:depth]}
            )
        self.register_buffer("mean_bgr", torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, rgb: Tensor) -> list[Tensor]:
        """Activations of `self.layers`, in that order."""
        x = rgb.flip(1) * 255 - self.mean_bgr
        found = {}
        for name, convolution in self.convolutions.items():
            if name in _VGG_POOL_BEFORE:
                x = functional.max_pool2d(x, 2)
            x = functional.relu(convolution(x))
            found[f"relu{name}"] = x
        return [found[name] for name in self.layers]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """`unit_distance` between pictures a and b (B, 3, H, W) in [0, 1]. Returns (B,); `.mean()` of it is a loss."""
        return unit_distance(self(a), self(b))

    def absolute_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """L1 in these features: the mean over layers of each one's mean absolute difference (Mentzer et al. 2020, section 5.4;
        layers and weights are not given there). In units of a picture's range, 255, it is about as large as `distance`.
        a, b: (B, 3, H, W) in [0, 1]. Returns (B,)."""
        layers = [(x - y).abs().mean((1, 2, 3), dtype=torch.float32) for x, y in zip(self(a), self(b), strict=True)]
        return torch.stack(layers).mean(0) / 255


class MobileNetFeatures(nn.Module):
    """MobileNet-v1 1.0 (Howard et al. 2017), the outputs of its pointwise blocks `blocks`, after normalisation and ReLU6.

    rgb (B, 3, H, W) in [0, 1]. For judging only, never a loss: a metric that is trained on stops measuring.
    """

    def __init__(self, weights: str | os.PathLike[str] | None = None, blocks: Sequence[int] = MOBILENET_LAYERS):
        super().__init__()
        self.blocks = tuple(blocks)
        self.depthwise, self.pointwise = nn.ModuleList(), nn.ModuleList()
        with _weights_of("MobileNet-v1", weights_path(MOBILENET_FILE, weights)) as tensors:
            self.first = _normalised_convolution(tensors, "conv1.kernel", "conv1_bn", stride=2)
            for i in range(1, max(blocks) + 1):
                stride = 2 if i in _MOBILENET_STRIDE_2 else 1
                kernel = f"conv_dw_{i}.depthwise_kernel"
                self.depthwise.append(_normalised_convolution(tensors, kernel, f"conv_dw_{i}_bn", stride, depthwise=True))
                self.pointwise.append(_normalised_convolution(tensors, f"conv_pw_{i}.kernel", f"conv_pw_{i}_bn"))
        self.requires_grad_(False)
        self.eval()

    def forward(self, rgb: Tensor) -> list[Tensor]:
        """Activations of `self.blocks`, in rising order."""
        x = _convolve(self.first, rgb * 2 - 1)
        found = []
        for i, (depthwise, pointwise) in enumerate(zip(self.depthwise, self.pointwise, strict=True), start=1):
            x = _convolve(pointwise, _convolve(depthwise, x))
            if i in self.blocks:
                found.append(x)
        return found

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """`unit_distance` between pictures a and b (B, 3, H, W) in [0, 1]. Returns (B,)."""
        return unit_distance(self(a), self(b))


def _convolve(convolution: nn.Module, x: Tensor) -> Tensor:
    if convolution.stride == (2, 2):  # TensorFlow pads below and right only
        x = functional.pad(x, (0, 1, 0, 1))
    return functional.relu6(convolution(x))


def _normalised_convolution(
    tensors: dict[str, Tensor], kernel: str, normalisation: str, stride: int = 1, depthwise: bool = False
) -> nn.Conv2d:
    """A convolution with its batch normalisation folded in; TensorFlow's HWIO kernels become OIHW."""
    weight = tensors[kernel].float().permute(2, 3, 0, 1) if depthwise else tensors[kernel].float().permute(3, 2, 0, 1)
    beta, gamma, mean, variance = (
        tensors[f"{normalisation}.{name}"].float() for name in ("beta", "gamma", "moving_mean", "moving_variance")
    )
    scale = gamma / (variance + _BATCH_NORM_EPSILON).sqrt()
    outputs, inputs, size = weight.shape[0], weight.shape[1], weight.shape[2]
    convolution = nn.Conv2d(
        outputs if depthwise else inputs,
        outputs,
        size,
        stride=stride,
        padding=size // 2 if stride == 1 else 0,
        groups=outputs if depthwise else 1,
    )
    convolution.load_state_dict({"weight": weight * scale.view(-1, 1, 1, 1), "bias": beta - mean * scale})
    return convolution


class SqueezeNetFeatures(nn.Module):
    """SqueezeNet 1.0 (Iandola et al. 2016) up to fire9, averaged over positions: rgb (B, 3, H, W) in [0, 1] to (B, 512).

    For distances between sets of pictures. H and W at least 32. A tenth of the activations, which makes Frechet distances
    about as large as Inception's are. `distance` compares two pictures by `maps`, as a training loss beside VGG19's.
    """

    mean_bgr: Tensor

    def __init__(self, weights: str | os.PathLike[str] | None = None):
        super().__init__()
        with _weights_of("SqueezeNet", weights_path(SQUEEZENET_FILE, weights)) as tensors:
            self.first = _convolution(tensors, "conv1", stride=2)
            self.fires = nn.ModuleList(
                nn.ModuleList(_convolution(tensors, f"fire{i}.{name}") for name in ("conv1x1_1", "conv1x1_2", "conv3x3_2"))
                for i in range(2, 10)
            )
        self.register_buffer("mean_bgr", torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, rgb: Tensor) -> Tensor:
        return self._activations(rgb, len(self.fires) + 1)[-1].mean((2, 3)) / 10

    def maps(self, rgb: Tensor) -> list[Tensor]:
        """Activations to compare pictures by: of conv1 (B, 96, H/2, W/2), and of fire modules SQUEEZENET_FIRES at 1/4 and 1/8.

        Not of the last ones: fire9's distance has ten times the others' gradient, which points elsewhere with every rounding
        of the picture, and drowns them (docs/log.md).
        """
        found = self._activations(rgb, SQUEEZENET_FIRES[-1])
        return [found[0], *(found[number - 1] for number in SQUEEZENET_FIRES)]

    def chosen(self, rgb: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Activations of those of SQUEEZENET_MAPS, in that order; at 1/2 of the sides (conv1), 1/4 (fire2 to fire4), 1/8 and,
        fire9, 1/16."""
        numbers = [SQUEEZENET_MAPS.index(name) for name in names]
        found = self._activations(rgb, 1 + max(numbers))
        return [found[number] for number in numbers]

    def _activations(self, rgb: Tensor, last: int) -> list[Tensor]:
        """Of conv1 and of the fire modules 2 to `last`."""
        x = functional.relu(self.first(rgb.flip(1) * 255 - self.mean_bgr))
        found = [x]
        for number, fire in enumerate(self.fires, start=2):
            if number > last:
                break
            assert isinstance(fire, nn.ModuleList)
            if number in (2, 5, 9):
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)  # as Caffe rounds
            x = functional.relu(fire[0](x))
            x = functional.relu(torch.cat([fire[1](x), fire[2](x)], 1))
            found.append(x)
        return found

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """`unit_distance` between the maps of pictures a and b (B, 3, H, W) in [0, 1]. Returns (B,)."""
        return unit_distance(self.maps(a), self.maps(b))


def _convolution(tensors: dict[str, Tensor], name: str, stride: int = 1) -> nn.Conv2d:
    """Padded to keep the size where the stride is 1."""
    weight, bias = tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()
    outputs, inputs, size, _ = weight.shape
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2 if stride == 1 else 0)
    convolution.load_state_dict({"weight": weight, "bias": bias})
    return convolution


class FeatureDistances:
    """The two judges together, on uint8 pictures: VGG19 (3 layers), VGG19-relu3_4, and MobileNet distance."""

    def __init__(self, weights: str | os.PathLike[str] | None = None, device: str = "cpu"):
        self.device = torch.device(device)
        self.vgg_features = VggFeatures(weights, VGG_LAYERS).to(self.device)
        self.mobilenet_features = MobileNetFeatures(weights).to(self.device)
        self._reference: tuple[np.ndarray, list[Tensor], list[Tensor]] | None = None

    @torch.inference_mode()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
        """a, b: uint8 (H, W, 3). Returns {"vgg", "vgg_relu3_4", "mobilenet"}; None in pictures too small for the network, below
        VGG_SIDE or MOBILENET_SIDE. Keeps the features of `a` for the next call."""
        if self._reference is None or self._reference[0] is not a:
            self._reference = (a, *self._features(a))
        _, vgg_x, mobilenet_x = self._reference
        vgg_y, mobilenet_y = self._features(b)
        return {
            "vgg": unit_distance(vgg_x, vgg_y).item() if vgg_x else None,
            "vgg_relu3_4": unit_distance(vgg_x[2:], vgg_y[2:]).item() if vgg_x else None,
            "mobilenet": unit_distance(mobilenet_x, mobilenet_y).item() if mobilenet_x else None,
        }

    def _features(self, rgb: np.ndarray) -> tuple[list[Tensor], list[Tensor]]:
        """None of a network that the picture is too small for."""
        x, side = to_batch(rgb).to(self.device), min(rgb.shape[:2])
        return (
            self.vgg_features(x) if side >= VGG_SIDE else [],
            self.mobilenet_features(x) if side >= MOBILENET_SIDE else [],
        )


def to_batch(rgb: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255


def load_standard(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A published file of weights: a `torch.save` state_dict, tensors alone (or safetensors). Raises InputError."""
    place = Path(path)
    if not place.is_file():
        raise InputError(f"{place}: no such weight file")
    if place.suffix == ".safetensors":
        return _load(place)
    try:
        state = torch.load(place, map_location="cpu", weights_only=True)
        return {k: v for k, v in state.items() if isinstance(v, Tensor)}
    except (
        *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, AssertionError),
        *(TypeError, OverflowError, struct.error),
    ) as error:
        raise InputError(f"{place}: not readable as weights; fetch it again") from error


@contextmanager
def _weights_of(network: str, path: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a weight file; InputError where they do not make the network that is built of them."""
    tensors = _load(path)
    try:
        yield tensors
    except (LookupError, RuntimeError, ValueError) as error:
        remedy = f"give --perceptual or {WEIGHTS_VARIABLE} the folder of all weight files"
        raise InputError(f"{path}: not the weights of {network}; {remedy}") from error


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
