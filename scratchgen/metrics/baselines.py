"""What one gets without a model: yardsticks in bits per dimension, beside every likelihood.

All are code lengths of the evaluated images; whatever has parameters fits them to the training
images only. Computed on the host, on integer codes.
"""

import lzma
import zlib

import numpy as np

from scratchgen.core.arrays import require_codes, require_shape
from scratchgen.core.numerics import logsumexp

COMPONENTS = 10
ITERATIONS = 50
DIMENSIONS = 256  # at once


def baselines(train: np.ndarray, test: np.ndarray, levels: int) -> dict[str, float]:
    """Bits per dimension of model-free codes for `test`.

    Args:
        train, test: (N, ...) integer codes in 0..levels-1.
        levels: K.

    Returns:
        name -> bits per dimension: a uniform code; every pixel independent with its own histogram;
        a mixture of ten such models; and the general compressors lzma and zlib on the raw bytes,
        as few for each code as hold K levels.

    Raises:
        ValueError: codes are out of their range, or train and test have not the same dimensions.
    """
    _require_fit(train, test, levels)
    raw = test.astype(np.min_scalar_type(levels - 1)).tobytes()
    return {
        "uniform": float(np.log2(levels)),
        "zlib": 8.0 * len(zlib.compress(raw, 9)) / test.size,
        "lzma": 8.0 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / test.size,
        "independent pixels": mixture_bits(train, test, levels, components=1),
        f"mixture of {COMPONENTS}": mixture_bits(train, test, levels, COMPONENTS),
    }


def mixture_bits(train: np.ndarray, test: np.ndarray, levels: int, components: int) -> float:
    """Bits per dimension of a mixture of independent-pixel histograms, fitted by EM.

        p(x) = Σ_c w_c Π_d p_cd(x_d),   p_cd(k) ∝ 1 + expected count of level k

    The one added to every count, and to every weight, is that of the posterior mean under a uniform
    prior; without it a level unseen in training would cost infinitely many bits. Of large images EM
    looks at DIMENSIONS random dimensions to find which component each image belongs to; the
    histograms are those of all dimensions.

    Args:
        train, test: (N, ...) integer codes in 0..levels-1.
        levels: K.
        components: C.

    Raises:
        ValueError: codes are out of their range, or train and test have not the same dimensions.
    """
    _require_fit(train, test, levels)
    train, test = (codes.reshape(len(codes), -1) for codes in (train, test))
    generator = np.random.Generator(np.random.Philox(key=0))
    share = generator.dirichlet(np.ones(components), len(train))
    some = train[:, np.sort(generator.permutation(train.shape[1])[:DIMENSIONS])]
    for _ in range(ITERATIONS - 1 if components > 1 else 0):
        joint = _log_joint(some, some, levels, share)
        share = np.exp(joint - logsumexp(joint)[:, None])
    log_likelihood = logsumexp(_log_joint(train, test, levels, share))
    return float(-log_likelihood.mean() / (test.shape[1] * np.log(2.0)))


def _require_fit(train: np.ndarray, test: np.ndarray, levels: int) -> None:
    require_codes("train", train, levels)
    require_codes("test", test, levels)
    require_shape("test", test, (len(test), *train.shape[1:]))


def _log_joint(train, seen, levels: int, share) -> np.ndarray:
    """log w_c + Σ_d log p_cd(x_d) of each seen x, from the training images' shares (N, C)."""
    log_w = np.log((share.sum(axis=0) + 1.0) / (len(train) + share.shape[1]))
    joint = np.tile(log_w, (len(seen), 1))
    for first in range(0, train.shape[1], DIMENSIONS):
        columns = slice(first, first + DIMENSIONS)
        places = levels * np.arange(train[:, columns].shape[1])
        counted, looked_up = (codes[:, columns] + places for codes in (train, seen))
        for c, weight in enumerate(share.T):
            mine = weight > 0.0  # soon most shares are 0
            weights = np.repeat(weight[mine], len(places))
            counts = np.bincount(counted[mine].ravel(), weights, levels * len(places)) + 1.0
            joint[:, c] += np.log(counts / (weight.sum() + levels))[looked_up].sum(axis=-1)
    return joint
