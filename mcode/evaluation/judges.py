"""What pictures are judged by in `mcode evaluate images`: every metric whose weights are at hand, under its own name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcode.errors import InputError
from mcode.evaluation import inception, lpips
from mcode.evaluation.features import (
    MOBILENET_FILE,
    MOBILENET_SIDE,
    SQUEEZENET_FILE,
    VGG_FILE,
    VGG_LAYERS,
    VGG_SIDE,
    MobileNetFeatures,
    SqueezeNetFeatures,
    VggFeatures,
    to_batch,
    unit_distance,
)
from mcode.evaluation.frechet import frechet_distance, kernel_distance, patches
from mcode.evaluation.metrics import ms_ssim, psnr, ssim
from mcode.evaluation.niqe import BLOCK, NIQE_FILE, Niqe
from mcode.fetch import Pinned, download

MS_SSIM_SIDE = 176
LPIPS_SIDE = 64
SMALLEST_SIDE = {"ms_ssim": MS_SSIM_SIDE, "lpips": LPIPS_SIDE, "vgg19": VGG_SIDE, "mobilenet": MOBILENET_SIDE}
"""By metric, the least width and height of a picture that has a score."""
_LAST_BLOCK = 12


@dataclass(frozen=True)
class Metric:
    """network: whose features of all pictures together it compares; None: a mean over pictures. needs: weight files."""

    key: str
    label: str
    higher_is_better: bool
    needs: tuple[str, ...] = ()
    network: str | None = None


METRICS = (
    Metric("psnr_db", "PSNR, dB", True),
    Metric("ssim", "SSIM", True),
    Metric("ms_ssim", "MS-SSIM", True),
    Metric("lpips", "LPIPS (AlexNet)", False, (lpips.ALEXNET_FILE, lpips.LINEAR_FILE)),
    Metric("vgg19", "VGG19 distance", False, (VGG_FILE,)),
    Metric("mobilenet", "MobileNet distance", False, (MOBILENET_FILE,)),
    Metric("niqe", "NIQE", False, (NIQE_FILE,)),
    Metric("fid256", "FID/256", False, (inception.INCEPTION_FILE,), "inception"),
    Metric("kid256", "KID/256", False, (inception.INCEPTION_FILE,), "inception"),
    Metric("squeezenet_fid256", "SqueezeNet FID/256", False, (SQUEEZENET_FILE,), "squeezenet"),
    Metric("mobilenet_kid256", "MobileNet KID/256", False, (MOBILENET_FILE,), "mobilenet"),
)
"""SSIM is of RGB, the mean over its channels, as MS-SSIM is; of videos it is luma's (compare.py)."""
_SET_DISTANCES = {
    "fid256": frechet_distance,
    "kid256": kernel_distance,
    "squeezenet_fid256": frechet_distance,
    "mobilenet_kid256": kernel_distance,
}


STANDARD_WEIGHTS = {
    lpips.ALEXNET_FILE: Pinned(lpips.ALEXNET_URL, lpips.ALEXNET_SHA256),
    lpips.LINEAR_FILE: Pinned(lpips.LINEAR_URL, lpips.LINEAR_SHA256),
    inception.INCEPTION_FILE: Pinned(inception.INCEPTION_URL, inception.INCEPTION_SHA256),
}
"""What LPIPS and FID need, where their authors publish it."""


def least_size(key: str, height: int, width: int) -> str | None:
    """The least that metric `key` takes, in words, where a picture of this size is smaller; None where it is not."""
    if key == "niqe":
        return f"two blocks of {BLOCK}x{BLOCK}" if (height // BLOCK) * (width // BLOCK) < 2 else None
    least = SMALLEST_SIDE.get(key, 0)
    return f"{least}x{least}" if min(height, width) < least else None


def fetch_standard_weights(
    folder: str | os.PathLike[str], progress: Callable[[int, int | None], None] | None = None
) -> list[Path]:
    """Downloads those of STANDARD_WEIGHTS (330 MB) that are not in the folder, each checked against its SHA-256; returns them.

    Raises InputError, where there is no network with what to do.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    wanted = [(place / name, pinned) for name, pinned in STANDARD_WEIGHTS.items() if not (place / name).is_file()]
    for path, pinned in wanted:
        download(pinned.url, path, sha256=pinned.sha256, progress=progress)
    return [path for path, _ in wanted]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Judges:
    """Scores pictures by every metric whose weight files lie in the folder; PSNR, SSIM and MS-SSIM need none.

    metrics: those at hand; missing: the labels of the others, with the first file that each lacks. identity: of all that
    scores depend on beside the pictures. Raises InputError for a folder that is not there or a damaged file.
    """

    def __init__(self, weights: str | os.PathLike[str] | None, device: str = "cpu") -> None:
        folder = Path(weights) if weights is not None else None
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: no such folder of weights; give the folder with --perceptual")
        self.device = torch.device(device)

        def lacks(metric: Metric) -> str | None:
            return next((name for name in metric.needs if folder is None or not (folder / name).is_file()), None)

        self.metrics = tuple(metric for metric in METRICS if lacks(metric) is None)
        self.missing = {metric.label: file for metric in METRICS if (file := lacks(metric)) is not None}
        here = {metric.key for metric in self.metrics}
        self._nets: dict[str, Callable[[Tensor], list[Tensor]]] = {}
        if "vgg19" in here:
            self._nets["vgg19"] = VggFeatures(folder, VGG_LAYERS).to(self.device)
        if "mobilenet" in here:
            self._nets["mobilenet"] = MobileNetFeatures(folder).to(self.device)
        self._niqe = Niqe(folder / NIQE_FILE) if folder and "niqe" in here else None
        self._lpips = (
            lpips.Lpips(folder / lpips.ALEXNET_FILE, folder / lpips.LINEAR_FILE, device) if folder and "lpips" in here else None
        )
        self._networks: dict[str, Callable[[Tensor], Tensor]] = {}
        if folder and "fid256" in here:
            incept = inception.InceptionFeatures(folder / inception.INCEPTION_FILE).to(self.device)
            self._networks["inception"] = lambda x: incept(x * 255)
        if folder and "squeezenet_fid256" in here:
            self._networks["squeezenet"] = SqueezeNetFeatures(folder).to(self.device)
        if folder and "mobilenet_kid256" in here:
            deep = MobileNetFeatures(folder, (_LAST_BLOCK,)).to(self.device)
            self._networks["mobilenet"] = lambda x: deep(x)[0].mean((2, 3))
        self._reference: tuple[np.ndarray, dict[str, list[Tensor]]] | None = None
        # Without SSIM, the youngest metric, which needs nothing: what was measured before there was one is still found.
        keys = [metric.key for metric in self.metrics if metric.key != "ssim"]
        used = sorted({name for metric in self.metrics for name in metric.needs})
        files = [f"{name}:{_sha256((folder or Path()) / name)}" for name in used]
        self.identity = ",".join([*keys, *files, *([self.device.type] if used else [])])

    @torch.inference_mode()
    def score(self, original: np.ndarray, decoded: np.ndarray) -> dict[str, float | None]:
        """Every metric of single pictures; None where the picture is too small for it. uint8 (H, W, 3) both.

        The original's features are kept for the next call.
        """
        side = min(original.shape[:2])
        nets = [key for key in self._nets if side >= SMALLEST_SIDE[key]]
        scores: dict[str, float | None] = {
            "psnr_db": psnr(original, decoded),
            "ssim": ssim(original, decoded),
            "ms_ssim": ms_ssim(original, decoded) if side >= MS_SSIM_SIDE else None,
        }
        if self._lpips:
            scores["lpips"] = self._lpips(original, decoded) if side >= LPIPS_SIDE else None
        if self._reference is None or self._reference[0] is not original:
            self._reference = original, self._activations(original, nets)
        found = self._activations(decoded, nets)
        scores |= dict.fromkeys(self._nets)
        scores |= {key: unit_distance(self._reference[1][key], found[key]).item() for key in found}
        if self._niqe:
            scores["niqe"] = self._niqe(decoded)
        return scores

    def _activations(self, rgb: np.ndarray, nets: Sequence[str]) -> dict[str, list[Tensor]]:
        x = to_batch(rgb).to(self.device)
        return {key: self._nets[key](x) for key in nets}

    @torch.inference_mode()
    def patch_features(self, rgb: np.ndarray) -> dict[str, np.ndarray]:
        """For each network, float32 (patches, d): the features of a picture's patches of 256x256; (0, 0) without any."""
        batches = [to_batch(patch).to(self.device) for patch in patches(rgb)]
        return {
            name: torch.cat([net(x) for x in batches]).cpu().numpy() if batches else np.zeros((0, 0), np.float32)
            for name, net in self._networks.items()
        }

    def compare_sets(self, originals: Mapping[str, np.ndarray], decoded: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """The metrics of sets, from each network's features of all patches; None where there are fewer than two."""
        scores: dict[str, float | None] = {}
        for metric in self.metrics:
            if metric.network is not None:
                a, b = originals[metric.network], decoded[metric.network]
                scores[metric.key] = _SET_DISTANCES[metric.key](a, b) if len(a) > 1 and len(b) > 1 else None
        return scores
