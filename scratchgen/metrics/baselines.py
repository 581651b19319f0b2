"""What one gets without a model: yardsticks in bits per dimension, beside every likelihood.

All are code lengths of the evaluated images; whatever has parameters fits them to the training
images only. Computed on the host, on integer codes.
"""

import lzma
import zlib

import numpy as np

from scratchgen.core.numerics import logsumexp

COMPONENTS = 10
ITERATIONS = 50


def baselines(train: np.ndarray, test: np.ndarray, levels: int) -> dict[str, float]:
    """Bits per dimension of model-free codes for `test`.

    Args:
        train, test: (N, ...) integer codes in 0..levels-1.
        levels: K.

    Returns:
        name -> bits per dimension: a uniform code; every pixel independent with its own histogram;
        a mixture of ten such models; and the general compressors lzma and zlib on the raw bytes.
    """
    train, test = (codes.reshape(len(codes), -1).astype(np.uint8) for codes in (train, test))
    raw = test.tobytes()
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
    prior; without it a level unseen in training would cost infinitely many bits.

    Args:
        train, test: (N, D) uint8 codes.
        levels: K.
        components: C.
    """
    one_hot = (train[..., None] == np.arange(levels)).reshape(len(train), -1).astype(np.float64)
    share = np.random.Generator(np.random.Philox(key=0)).dirichlet(np.ones(components), len(train))
    for _ in range(ITERATIONS if components > 1 else 1):
        counts = (share.T @ one_hot).reshape(components, -1, levels) + 1.0
        log_p = np.log(counts / counts.sum(axis=-1, keepdims=True))
        log_w = np.log((share.sum(axis=0) + 1.0) / (len(train) + components))
        joint = one_hot @ log_p.reshape(components, -1).T + log_w
        share = np.exp(joint - logsumexp(joint)[:, None])
    seen = np.take_along_axis(log_p[None], test[:, None, :, None].astype(int), axis=-1)
    log_likelihood = logsumexp(seen[..., 0].sum(axis=-1) + log_w)
    return float(-log_likelihood.mean() / (test.shape[1] * np.log(2.0)))
