"""Distances between two sets of pictures by their features: Frechet distance (FID) and kernel distance (KID). Any network.

Both are taken on patches of 256x256 (Mentzer et al. 2020, section 5.2 and appendix A.7). A number is called FID or KID
alone only with Inception's features (`mcode.evaluation.inception`); with others it carries the network's name.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PATCH = 256
KID_SUBSET, KID_SUBSETS = 1000, 100


def patches(rgb: np.ndarray, size: int = PATCH) -> Iterator[np.ndarray]:
    """All size x size patches side by side from the top left corner, then from size/2 further down and right one row and one
    column fewer, as in appendix A.7, where more would fit, too.

    None for pictures smaller than a patch. A 768x512 picture has 6 + 2 of 256.
    """
    rows, columns = rgb.shape[0] // size, rgb.shape[1] // size
    for start, fewer in ((0, 0), (size // 2, 1)):
        for row in range(rows - fewer):
            for column in range(columns - fewer):
                top, left = start + row * size, start + column * size
                yield rgb[top : top + size, left : left + size]


def patch_count(height: int, width: int, size: int = PATCH) -> int:
    """How many `patches` a picture of this size has."""
    rows, columns = height // size, width // size
    return rows * columns + max(0, rows - 1) * max(0, columns - 1)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between normal distributions fitted to two sets of features, (n, d) and (m, d): 0 or more (Heusel et al. 2017).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)). It falls with the number of pictures (Binkowski et al. 2018): compare
    sets of one size only. Raises ValueError for fewer than two of either, or other widths.
    """
    a, b = _checked(a, b)
    mean = a.mean(0) - b.mean(0)
    # With C = R'R, tr (C_a C_b)^(1/2) is the sum of the singular values of R_a R_b', also where no covariance has full rank.
    x, y = (np.asarray(np.linalg.qr((v - v.mean(0)) / np.sqrt(len(v) - 1), mode="r")) for v in (a, b))
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(max(mean @ mean + (x * x).sum() + (y * y).sum() - 2 * cross, 0))


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subset: int = KID_SUBSET, subsets: int = KID_SUBSETS, seed: int = 0
) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3 (Binkowski et al. 2018).

    About 0 for sets of one kind; it may be negative, the more so for few pictures and their own coded versions. The mean
    over `subsets` draws of `subset` features; of all at once where fewer are there. a: (n, d), b: (m, d). Raises
    ValueError for fewer than two of either, or other widths.
    """
    a, b = _checked(a, b)
    n = min(subset, len(a), len(b))
    if n < subset:
        return _discrepancy(a, b)
    rng = np.random.default_rng(seed)
    draws = ((rng.choice(len(a), n, replace=False), rng.choice(len(b), n, replace=False)) for _ in range(subsets))
    return float(np.mean([_discrepancy(a[i], b[j]) for i, j in draws]))


def _discrepancy(a: np.ndarray, b: np.ndarray) -> float:
    n, m, d = len(a), len(b), a.shape[1]
    within_a, within_b, across = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    own_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    own_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(own_a + own_b - 2 * across.mean())


def _checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"need two sets of at least two features of one width, not {a.shape} and {b.shape}")
    return a.astype(np.float64), b.astype(np.float64)
