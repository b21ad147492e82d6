"""NIQE, LPIPS, Frechet and kernel distances, BD-rates: each against a second implementation or a closed form."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.interpolate
import scipy.linalg
import scipy.ndimage
import scipy.signal
import scipy.special
import torch
from safetensors.torch import save_file

from mcode.errors import InputError
from mcode.evaluation import features, inception, lpips
from mcode.evaluation.bd import bd_rate
from mcode.evaluation.frechet import frechet_distance, kernel_distance, patches
from mcode.evaluation.metrics import ms_ssim
from mcode.evaluation.niqe import NIQE_FILE, Niqe, block_features
from mcode.testclip import render_frames


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return next(iter(render_frames("pan", 0.04, 25, (300, 204), 1))).rgb


def noisy(rgb: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, rgb.shape)
    return np.clip(np.rint(rgb + noise), 0, 255).astype(np.uint8)


def weights(folder: Path, name: str) -> Path:
    path = folder / "perceptual" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


# MS-SSIM


def test_ms_ssim_agrees_with_a_plain_implementation(picture):
    a, b = picture[..., 0].astype(float), noisy(picture, 25)[..., 0].astype(float)
    at = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(at, at) / at.sum() ** 2

    def mean(x):
        return scipy.signal.correlate2d(x, window, mode="valid")

    product = 1.0
    for weight in (0.0448, 0.2856, 0.3001, 0.2363, 0.1333):
        c1, c2 = 6.5025, 58.5225
        ma, mb = mean(a), mean(b)
        va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
        structure = (2 * cov + c2) / (va + vb + c2)
        whole = structure * (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
        product *= (whole if weight == 0.1333 else structure).mean() ** weight
        a, b = (scipy.ndimage.uniform_filter(x, 2, origin=-1)[: len(x) // 2 * 2 : 2, : x.shape[1] // 2 * 2 : 2] for x in (a, b))
    assert ms_ssim(picture[..., 0], noisy(picture, 25)[..., 0]) == pytest.approx(product, rel=1e-6)


# NIQE


def fitted(values: np.ndarray) -> tuple[float, float, float, float]:
    """Shape, mean, left and right scale of an asymmetric generalised Gaussian, one block at a time."""
    shapes = np.arange(0.2, 10, 0.001)
    gamma = scipy.special.gamma
    ratios = gamma(2 / shapes) ** 2 / gamma(1 / shapes) / gamma(3 / shapes)
    left, right = np.sqrt((values[values < 0] ** 2).mean()), np.sqrt((values[values > 0] ** 2).mean())
    g = left / right
    r = np.abs(values).mean() ** 2 / (values**2).mean() * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    a = shapes[np.argmin((ratios - r) ** 2)]
    left, right = (s * np.sqrt(gamma(1 / a) / gamma(3 / a)) for s in (left, right))
    return a, (right - left) * gamma(2 / a) / gamma(1 / a), left, right


def halved(grey: np.ndarray) -> np.ndarray:
    """MATLAB's imresize by a half: every output from the cubic kernel's eight inputs, mirrored at the edge."""

    def cubic(x):
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    for axis in (0, 1):
        n = grey.shape[axis]
        rows = np.zeros((n // 2, n))
        for i in range(n // 2):
            centre = 2 * i + 0.5
            for j in range(math.floor(centre - 4), math.ceil(centre + 4) + 1):
                inside = -j - 1 if j < 0 else 2 * n - 1 - j if j >= n else j
                rows[i, inside] += cubic((centre - j) / 2)
        rows /= rows.sum(1, keepdims=True)
        grey = np.moveaxis(np.tensordot(rows, grey, (1, axis)), 0, axis)
    return grey


def test_niqes_features_agree_with_a_plain_implementation(picture):
    at = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    window = np.outer(at, at) / at.sum() ** 2
    grey = noisy(picture, 5)[:192, :288, 1].astype(float)
    expected = np.zeros((6, 36))
    x = grey
    for scale, size in enumerate((96, 48)):
        mean = scipy.ndimage.correlate(x, window, mode="nearest")
        deviation = np.sqrt(np.abs(scipy.ndimage.correlate(x**2, window, mode="nearest") - mean**2))
        normalised = (x - mean) / (deviation + 1)
        for number in range(6):
            top, left = number // 3 * size, number % 3 * size
            block = normalised[top : top + size, left : left + size]
            shape, _, a, b = fitted(block)
            row = [shape, (a + b) / 2]
            for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                row += fitted(block * np.roll(block, shift, axis=(0, 1)))
            expected[number, 18 * scale : 18 * scale + 18] = row
        x = halved(x)
    np.testing.assert_allclose(block_features(grey, window), expected, rtol=1e-6, atol=2e-3)


def test_niqe_is_0_for_the_pictures_it_was_fitted_to_and_the_distance_of_means_elsewhere(picture, tmp_path):
    at = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    window = np.outer(at, at) / at.sum() ** 2
    grey = noisy(picture, 5)[:192, :288, 1]
    found = block_features(grey.astype(float), window)
    mean, covariance = found.mean(0), np.eye(36) * 2 - np.cov(found, rowvar=False)  # so that their mean is the identity
    for shift, distance in ((0, 0.0), (3, 3 * 6.0)):  # 36 features, each 3 off: 3 sqrt(36)
        np.savez(tmp_path / "p.npz", mu_pris_param=mean[None] + shift, cov_pris_param=covariance, gaussian_window=window)
        assert Niqe(tmp_path / "p.npz")(grey) == pytest.approx(distance, abs=1e-6)
    assert Niqe(tmp_path / "p.npz")(grey[:100, :100]) is None
    assert Niqe(tmp_path / "p.npz")(np.full((192, 192), 7, np.uint8)) is None


def test_niqe_of_photographs_is_small_and_rises_with_noise_and_blur(data_dir):
    niqe = Niqe(weights(data_dir, NIQE_FILE))
    from mcode.evaluation.stills import read_images

    (photo,) = read_images(data_dir / "stills" / "kodak" / "kodim03.png")
    clean = niqe(photo)
    assert 2 < clean < 5
    assert niqe(noisy(photo, 25)) > clean + 1
    assert niqe(scipy.ndimage.gaussian_filter(photo, (3, 3, 0))) > clean + 1


def test_other_files_than_niqes_parameters_are_one_line(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "b.npz", other=np.zeros(3))
    (tmp_path / "empty.npz").touch()
    data = (tmp_path / "b.npz").read_bytes()
    (tmp_path / "packed.npz").write_bytes(data.replace(b"PK\1\2-\3-\0\0\0\0\0", b"PK\1\2-\3-\0\0\0\5\0"))
    for name in ("a.npz", "b.npz", "empty.npz", "packed.npz", "absent.npz"):
        with pytest.raises(InputError, match="not the parameters of NIQE"):
            Niqe(tmp_path / name)


# Frechet and kernel distances


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 5), (40, 40, 12), (6, 9, 20)])
def test_frechet_distance_agrees_with_the_matrix_square_root(n, m, d):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), 1 + rng.normal(size=(m, d)) * np.arange(1, d + 1)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    with np.errstate(all="ignore"):
        root = scipy.linalg.sqrtm(ca + 1e-10 * np.eye(d)) @ cb @ scipy.linalg.sqrtm(ca + 1e-10 * np.eye(d))
    cross = np.sqrt(np.linalg.eigvals(root).real.clip(0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * d)  # moved: the squared distance of the means


def test_kernel_distance_agrees_with_sums_over_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(7, 4)), rng.normal(0.5, 1, size=(5, 4))

    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / 4 + 1) ** 3

    within = [np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(within[0] + within[1] - 2 * across)


def test_kernel_distance_of_one_kind_is_about_0_and_its_draws_depend_on_the_seed_alone():
    rng = np.random.default_rng(2)
    a, b, c = rng.normal(size=(400, 8)), rng.normal(size=(400, 8)), rng.normal(1, 1, size=(400, 8))
    near, far = (kernel_distance(a, x, subset=100, subsets=20) for x in (b, c))
    assert abs(near) < 0.02 < 0.5 < far
    assert kernel_distance(a, c, subset=100, subsets=20) == far != kernel_distance(a, c, subset=100, subsets=20, seed=1)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance])
def test_sets_that_cannot_be_compared_are_refused(measure):
    with pytest.raises(ValueError, match="one width"):
        measure(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="at least two"):
        measure(np.zeros((1, 3)), np.zeros((5, 3)))


def test_patches_are_those_of_the_papers_appendix():
    rgb = np.arange(512 * 768 * 3, dtype=np.uint32).reshape(512, 768, 3)
    found = list(patches(rgb))
    assert len(found) == 8 and all(patch.shape == (256, 256, 3) for patch in found)  # 192 of Kodak's 24 pictures
    corners = [(int(p[0, 0, 0]) // 3 // 768, int(p[0, 0, 0]) // 3 % 768) for p in found]
    assert corners == [(0, 0), (0, 256), (0, 512), (256, 0), (256, 256), (256, 512), (128, 128), (128, 384)]
    assert list(patches(rgb[:255])) == [] and len(list(patches(rgb[:256, :256]))) == 1
    wide = np.zeros((1356, 2040, 3), np.uint8)  # a fifth and an eighth shifted one would fit
    assert len(list(patches(wide))) == 5 * 7 + 4 * 6


# Networks


def test_inception_computes_what_torch_fidelity_computes(tmp_path):
    """Expected: torch-fidelity 0.4.0's FeatureExtractorInceptionV3, on these weights and this picture."""
    path = tmp_path / inception.INCEPTION_FILE
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_standard", lambda path: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        shapes = {k: tuple(v.shape) for k, v in inception.InceptionFeatures(path).state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        if not shape:
            continue
        r = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape).astype(np.float32)
        if name.endswith("running_var"):
            r = 1 + 0.1 * np.abs(r)
        elif name.endswith("bn.weight"):
            r = 1 + 0.1 * r
        else:
            r = r * np.float32(np.sqrt(2 / np.prod(shape[1:]))) if r.ndim == 4 else np.float32(0.05) * r
        state[name] = torch.from_numpy(r)
    torch.save(state | {"fc.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, path)
    x = np.random.Generator(np.random.PCG64(7)).integers(0, 256, (1, 3, 256, 256), np.uint8)
    with torch.inference_mode():
        out = inception.InceptionFeatures(path)(torch.from_numpy(x))
    assert out.shape == (1, 2048)
    expected = [1.1659345626831055, 0.006344236433506012, 0.0, 0.002318466315045953, 0.06286529451608658, 1.2501603364944458]
    assert out[0, ::400].tolist() == pytest.approx(expected, abs=1e-4)
    del state["Mixed_7c.branch_pool.conv.weight"]
    torch.save(state, path)
    with pytest.raises(InputError, match="not the weights of FID's Inception"):
        inception.InceptionFeatures(path)


def test_tensorflow_1_resized_without_half_pixels():
    row = torch.tensor([0.0, 10, 20]).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    assert inception.resize_as_tensorflow(row, 6)[0, 0, 0].tolist() == [0, 5, 10, 15, 20, 20]


def test_lpips_agrees_with_torchvisions_alexnet_and_the_papers_equation(tmp_path, picture):
    torch.manual_seed(0)
    net = torch.nn.Sequential(  # torchvision's AlexNet, features only
        torch.nn.Conv2d(3, 64, 11, 4, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(64, 192, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(192, 384, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(384, 256, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(256, 256, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
    )  # fmt: skip
    torch.save({f"features.{k}": v for k, v in net.state_dict().items()}, tmp_path / lpips.ALEXNET_FILE)
    linear = [torch.rand(1, c, 1, 1) for c in (64, 192, 384, 256, 256)]
    torch.save({f"lin{i}.model.1.weight": w for i, w in enumerate(linear)}, tmp_path / lpips.LINEAR_FILE)
    measure = lpips.Lpips(tmp_path / lpips.ALEXNET_FILE, tmp_path / lpips.LINEAR_FILE)

    def activations(rgb):
        x = torch.from_numpy(rgb / 127.5 - 1).permute(2, 0, 1)[None].float()
        x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
        found = []
        for layer in net:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                found.append(x[0].detach().double().numpy())
        return found

    other = noisy(picture, 20)
    expected = 0.0
    for a, b, w in zip(activations(picture), activations(other), linear, strict=True):
        a, b = (v / np.linalg.norm(v, axis=0) for v in (a, b))
        expected += (w.numpy().reshape(-1, 1, 1) * (a - b) ** 2).sum(0).mean()
    assert measure(picture, other) == pytest.approx(expected, rel=1e-4)
    assert measure(picture, picture.copy()) == 0
    with pytest.raises(InputError, match="not LPIPS's weights"):
        lpips.Lpips(tmp_path / lpips.ALEXNET_FILE, tmp_path / lpips.ALEXNET_FILE)
    with pytest.raises(InputError, match="not the weights of torchvision's AlexNet"):
        lpips.Lpips(tmp_path / lpips.LINEAR_FILE, tmp_path / lpips.LINEAR_FILE)


def test_squeezenet_tells_noise_from_pictures(data_dir, picture):
    net = features.SqueezeNetFeatures(weights(data_dir, features.SQUEEZENET_FILE))
    with torch.inference_mode():
        clean, near, far = (net(features.to_batch(rgb)) for rgb in (picture, noisy(picture, 4), noisy(picture, 60)))
    assert clean.shape == (1, 512) and (clean >= 0).all()
    assert 0 < (clean - near).norm() < (clean - far).norm()
    before = features.to_batch(picture)
    compared = [net.distance(before, features.to_batch(noisy(picture, sigma))).item() for sigma in (4, 60)]
    h = picture.shape[0]
    assert [m.shape[1] for m in net.maps(before)] == [96, 128, 256] and abs(net.maps(before)[-1].shape[2] - h / 8) <= 2
    assert 0 < compared[0] < compared[1] and net.distance(before, before).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (features.VggFeatures, "VGG19"),
        (features.MobileNetFeatures, "MobileNet-v1"),
        (features.SqueezeNetFeatures, "SqueezeNet"),
    ],
)
def test_weights_of_another_network_are_one_line(tmp_path, network, name):
    path = tmp_path / "other.safetensors"
    flat = {name: torch.zeros(2) for name in ("conv1.weight", "conv1.kernel", "conv1_1.weight")}
    for tensors in ({"fc.weight": torch.zeros(2, 2)}, flat):
        save_file(tensors, path)
        with pytest.raises(InputError, match=rf"other\.safetensors: not the weights of {name}") as error:
            network(path)
        assert "\n" not in str(error.value)


def test_weights_that_would_run_code_or_are_cut_short_are_one_line(tmp_path):
    for content in (b"", b"nothing", b"PK\x03\x04cut"):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(InputError, match="not readable as weights"):
            features.load_standard(tmp_path / "a.pth")
    torch.save({"a": print}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="not readable as weights"):
        features.load_standard(tmp_path / "a.pth")


# BD-rate


ANCHOR = [(0.1, 28.0), (0.2, 31.0), (0.4, 34.5), (0.8, 37.0)]


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3])
def test_a_factor_in_rate_is_the_bd_rate(factor):
    found = bd_rate(ANCHOR, [(rate * factor, quality) for rate, quality in reversed(ANCHOR)])
    assert found.percent == pytest.approx(100 * (factor - 1)) and found.overlap == 1
    inverted = bd_rate([(r, -q) for r, q in ANCHOR], [(r * factor, -q) for r, q in ANCHOR], higher_is_better=False)
    assert inverted.percent == pytest.approx(found.percent)


def test_bd_rate_integrates_piecewise_cubics_over_the_common_range():
    test = [(0.09, 29.0), (0.21, 32.0), (0.35, 35.0), (0.7, 37.5), (1.0, 39.0)]
    curves = [scipy.interpolate.PchipInterpolator([q for _, q in c], np.log([r for r, _ in c])) for c in (ANCHOR, test)]
    area = scipy.integrate.quad(lambda q: curves[1](q) - curves[0](q), 29.0, 37.0, limit=200)[0]
    found = bd_rate(ANCHOR, test)
    assert found.percent == pytest.approx(100 * (math.exp(area / 8) - 1), rel=1e-6)
    assert found.overlap == pytest.approx(8 / 11)


def test_settings_that_a_cheaper_one_beats_are_left_out_of_the_bd_rate():
    assert bd_rate(ANCHOR, [*ANCHOR, (0.3, 30.0), (0.2, 29.0), (0.9, 37.0)]).percent == pytest.approx(0)


def test_a_setting_of_no_bits_is_left_out_of_the_bd_rate():
    dearer = [(1.3 * rate, quality) for rate, quality in ANCHOR]
    for nothing in (0.0, -0.1):
        assert bd_rate([(nothing, 20.0), *ANCHOR], [(nothing, 20.0), *dearer]) == bd_rate(ANCHOR, dearer)


def test_bd_rate_is_not_defined_without_a_common_range_or_a_rising_curve():
    assert bd_rate(ANCHOR, [(r, q + 20) for r, q in ANCHOR]) is None
    assert bd_rate(ANCHOR, [(r, q + 8.9) for r, q in ANCHOR]) is None  # hardly any
    assert bd_rate(ANCHOR, ANCHOR[:2]) is None
    assert bd_rate(ANCHOR, [(0.1, 28.0), (0.2, 27.0), (0.4, 34.5)]) is None
