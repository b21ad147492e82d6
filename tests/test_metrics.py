"""PSNR, SSIM, MS-SSIM: closed forms, and scikit-image as second implementation. Feature distances: order, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mcode.errors import InputError
from mcode.evaluation.features import (
    MOBILENET_FILE,
    VGG_FILE,
    WEIGHTS_VARIABLE,
    FeatureDistances,
    MobileNetFeatures,
    VggFeatures,
    unit_distance,
    weights_path,
)
from mcode.evaluation.metrics import PSNR_MAX_DB, luma, ms_ssim, psnr, ssim
from mcode.testclip import render_frames


def noisy(rgb: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, rgb.shape)
    return np.clip(np.rint(rgb + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return next(iter(render_frames("arms", 0.04, 25, (64, 48), 1))).rgb


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    return next(iter(render_frames("pan", 0.04, 25, (192, 180), 1))).rgb


@pytest.mark.parametrize("offset", [1, 5, 255])
def test_constant_offset_has_an_exact_psnr(offset):
    a = np.zeros((6, 7, 3), np.uint8)
    assert psnr(a, a + np.uint8(offset)) == pytest.approx(20 * math.log10(255 / offset))


def test_one_wrong_value_is_averaged_over_all_values():
    a = np.full((10, 10, 3), 100, np.uint8)
    b = a.copy()
    b[3, 4, 1] = 110
    assert psnr(a, b) == psnr(b, a) == pytest.approx(10 * math.log10(255**2 * 300 / 100))


def test_identical_pictures_score_the_most(picture):
    assert psnr(picture, picture.copy()) == PSNR_MAX_DB
    assert ssim(picture, picture.copy()) == pytest.approx(1)


def test_flat_pictures_have_the_luminance_term_alone_as_ssim():
    a, b = np.full((20, 20), 100, np.uint8), np.full((20, 20), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


def test_a_negative_has_negative_ssim():
    a = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    assert -1 <= ssim(a, 255 - a) < -0.5


@pytest.mark.parametrize("deviation", [2, 20, 80])
@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_agree_with_scikit_image(picture, deviation, channels):
    a = picture if channels == 3 else luma(picture)
    b = noisy(a, deviation, seed=deviation)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b))
    other = structural_similarity(
        a,
        b,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2 if channels == 3 else None,
    )
    assert ssim(a, b) == pytest.approx(other, abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 2), (8, 9), (10, 40, 3)])
def test_pictures_smaller_than_the_window_still_have_an_ssim(shape):
    a = np.random.default_rng(1).integers(0, 200, shape, np.uint8)
    assert ssim(a, a) == pytest.approx(1)
    assert -1 <= ssim(a, noisy(a, 40)) < 1


def test_pictures_smaller_than_the_window_are_mirrored_at_the_edge_and_that_pixel_twice():
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 256, (8, 8), np.uint8) for _ in range(2))
    x, y = a.astype(float), b.astype(float)

    def mean(values):
        return gaussian_filter(values, 1.5, mode="reflect", radius=5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    variances, covariance = mean(x * x) - mx * mx + mean(y * y) - my * my, mean(x * y) - mx * my
    expected = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (variances + c2))
    assert ssim(a, b) == pytest.approx(expected.mean(), abs=1e-9)


def test_ms_ssim_is_one_for_equals_symmetric_and_falls_with_noise(large):
    assert ms_ssim(large, large.copy()) == pytest.approx(1)
    scores = [ms_ssim(large, noisy(large, deviation)) for deviation in (4, 16, 64)]
    assert 1 > scores[0] > scores[1] > scores[2] > 0
    assert ms_ssim(noisy(large, 16), large) == pytest.approx(scores[1])


def test_ms_ssim_forgives_fine_noise_which_ssim_does_not(large):
    assert ms_ssim(large, noisy(large, 16)) > ssim(large, noisy(large, 16))


def test_ms_ssim_of_flat_pictures_weighs_luminance_once_at_the_coarsest_scale():
    a, b = np.full((176, 176), 100, np.uint8), np.full((176, 176), 150, np.uint8)
    assert ms_ssim(a, b) == pytest.approx(ssim(a, b) ** 0.1333, rel=1e-9)


def test_ms_ssim_counts_opposite_structure_as_nothing():
    a = np.random.default_rng(0).integers(0, 256, (176, 176), np.uint8)
    assert ms_ssim(a, 255 - a) == 0


def test_ms_ssim_refuses_pictures_that_its_coarsest_scale_has_no_room_for():
    a = np.zeros((176, 175, 3), np.uint8)
    with pytest.raises(ValueError, match="at least 176, not 175x176"):
        ms_ssim(a, a)


def test_luma_weighs_colours_as_bt601():
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert luma(primaries).tolist() == [[76, 150, 29, 255]]


@pytest.mark.parametrize("measure", [psnr, ssim, ms_ssim])
def test_pictures_of_other_shapes_or_types_are_refused(measure):
    a = np.zeros((180, 180, 3), np.uint8)
    with pytest.raises(ValueError, match="uint8 pictures of one shape"):
        measure(a, a[:, :-1])
    with pytest.raises(ValueError, match="float32"):
        measure(a.astype(np.float32), a.astype(np.float32))


def test_unit_distance_is_0_for_equals_whatever_their_length_2_at_right_angles_4_for_opposites():
    import torch

    a = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 5, 5)
    across = torch.tensor([-4.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 5, 5)
    for b, distance in ((a, 0), (7 * a, 0), (across, 2), (-a, 4)):
        assert unit_distance([a], [b]).tolist() == pytest.approx([distance], abs=1e-6)
    assert unit_distance([a, a], [a, -a]).tolist() == pytest.approx([2])  # the mean over layers


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_unit_distance_has_the_value_and_the_gradient_of_its_definition(dtype, tolerance):
    draw = torch.Generator().manual_seed(4)
    a = torch.randn(2, 24, 5, 7, generator=draw, dtype=torch.float64).relu()
    b = (a + 0.4 * torch.randn(a.shape, generator=draw, dtype=torch.float64)).relu()
    a[:, :, 0, 0] = b[:, :, 1, 1] = 0  # nothing there
    b[0, :, 2, 2] = 1e-5  # too little to be scaled to unit length
    a, b = a.to(dtype), b.to(dtype)

    def found(distance, *pair):
        leaves = [v.detach().clone().requires_grad_() for v in pair]
        value = distance(*leaves)
        (value * torch.tensor([1.0, 3.0])).sum().backward()
        return [value.detach().double(), *(leaf.grad.double() for leaf in leaves)]

    def definition(a, b):
        a, b = (v / v.norm(dim=1, keepdim=True).clamp_min(1e-3) for v in (a, b))
        return (a - b).square().sum(1).mean((1, 2))

    for got, wanted in zip(
        found(lambda a, b: unit_distance([a], [b]), a, b), found(definition, a.double(), b.double()), strict=True
    ):
        assert (got - wanted).norm() <= tolerance * wanted.norm()


@pytest.fixture(scope="module")
def distances(data_dir) -> FeatureDistances:
    folder = data_dir / "perceptual"
    if not (folder / VGG_FILE).is_file() or not (folder / MOBILENET_FILE).is_file():
        pytest.skip(f"no network weights in {folder}")
    return FeatureDistances(folder)


def test_feature_distances_are_0_for_equals_and_rise_with_noise(distances, picture):
    assert distances(picture, picture.copy()) == {"vgg": 0, "vgg_relu3_4": 0, "mobilenet": 0}
    scores = [distances(picture, noisy(picture, deviation)) for deviation in (4, 16, 64)]
    for name in ("vgg", "vgg_relu3_4", "mobilenet"):
        assert 0 < scores[0][name] < scores[1][name] < scores[2][name] < 4


def test_vgg_layers_come_in_the_order_asked_for(distances, data_dir):
    import torch

    features = VggFeatures(data_dir / "perceptual", ("relu2_2", "relu1_2"))
    with torch.inference_mode():
        assert [tuple(t.shape) for t in features(torch.zeros(1, 3, 48, 64))] == [(1, 128, 24, 32), (1, 64, 48, 64)]


def test_unknown_vgg_layers_are_named_before_weights_are_looked_for():
    with pytest.raises(ValueError, match=r"no VGG19 layer relu5_1: one of relu1_1, .*relu3_4"):
        VggFeatures("/no/such/place", ("relu1_2", "relu5_1"))


@pytest.mark.parametrize("network", [VggFeatures, MobileNetFeatures, FeatureDistances])
def test_missing_weights_are_one_line_that_says_what_to_set(network, tmp_path, monkeypatch):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    for place in (None, tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(InputError, match=f"{WEIGHTS_VARIABLE} to the folder") as error:
            network(place)
        assert "\n" not in str(error.value)


def test_the_environment_names_the_weights_and_an_argument_wins(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / VGG_FILE).write_bytes(b"weights")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(here))
    assert weights_path(VGG_FILE) == here / VGG_FILE
    assert weights_path(VGG_FILE, there) == weights_path(VGG_FILE, there / VGG_FILE) == there / VGG_FILE
    with pytest.raises(InputError, match="not a readable safetensors file") as error:
        VggFeatures()
    assert "\n" not in str(error.value)
