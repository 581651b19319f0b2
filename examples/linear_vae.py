"""A linear VAE on Gaussian data reaches the exact log-likelihood and finds the principal axes.

    python examples/linear_vae.py

Model: z ~ N(0, I), x | z ~ N(Wz + b, τ I), encoder N(Vx + c, e^(Ux + u)), everything linear. Its
ELBO can be made tight, and then the optimum is probabilistic PCA: b is the mean, the columns of W
are the leading eigenvectors of the covariance, scaled to length² λ - τ. A direction whose variance
λ is at most τ is not worth its rate: its latent collapses (VAE-10).

The reconstruction is quadratic in ε, so the 2K points ±√K e_k average it exactly: the loss below is
the true -ELBO, without noise.
"""

import argparse
from math import log, pi, sqrt

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.affine import Linear
from scratchgen.maths.likelihoods import FixedNormal
from scratchgen.models.autoencoder import principal_components
from scratchgen.models.vae import Vae, active_units
from scratchgen.training.optim import Adam, warmup_cosine

LATENT = 2


def exact_log_likelihood(eigenvalues: np.ndarray, tau: float) -> float:
    """The largest mean of log N(x; b, W Wᵀ + τ I) over W with K columns, given the eigenvalues."""
    kept = np.maximum(eigenvalues[:LATENT], tau)
    variances = np.concatenate([kept, np.full(len(eigenvalues) - LATENT, tau)])
    return -0.5 * float(np.sum(eigenvalues / variances + np.log(variances) + log(2.0 * pi)))


def train(x: np.ndarray, tau: float, steps: int, stream: Stream) -> tuple[Vae, float]:
    """The trained model and its exact mean ELBO in nats."""
    n, dims = x.shape
    vae = Vae(Linear(dims, 2 * LATENT), Linear(LATENT, dims), FixedNormal(tau))
    params = FlatParameters(vae, stream.at("initial"))
    adam = Adam(params, warmup_cosine(0.05, steps))
    points = sqrt(LATENT) * np.concatenate([np.eye(LATENT), -np.eye(LATENT)])
    eps = np.repeat(points[:, None, :], n, axis=1)
    share = np.full(n, 1.0 / n)
    for _ in range(steps):
        (reconstruction, kl), pullback = vae.loss(x, eps)
        pullback(share, share)
        adam.step()
    return vae, -float(np.mean(reconstruction + kl))


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train at two decoder variances and compare with the closed forms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()
    steps = 20 if given.smoke else 8000

    stream = Stream(given.seed, backend("numpy", "float64"))
    scales = np.sqrt([4.0, 1.5, 0.3, 0.3, 0.3])
    axes, _ = np.linalg.qr(stream.at("axes").normal((5, 5)))
    x = (stream.at("data").normal((500, 5)) * scales) @ axes.T
    _, eigenvalues, vectors = principal_components(x)
    print("eigenvalues of the covariance:", np.round(eigenvalues, 3))

    for tau in (float(eigenvalues[LATENT:].mean()), float(eigenvalues[:2].mean())):
        vae, elbo = train(x, tau, steps, stream)
        exact = exact_log_likelihood(eigenvalues, tau)
        w = vae.decoder.weight.read().value
        lengths = np.sort((w * w).sum(axis=0))[::-1]
        used = active_units(vae.kl_per_dimension(x))
        span, _ = np.linalg.qr(w[:, np.argsort(-(w * w).sum(axis=0))])
        cosines = np.abs(np.sum(span * vectors[:, :LATENT], axis=0))[:used]
        print(f"\ndecoder variance τ = {tau:.3f}")
        print(f"  ELBO {elbo:.6f} nats, exact log-likelihood {exact:.6f}, gap {exact - elbo:.1e}")
        print(f"  |w|² {np.round(lengths, 3)}, λ - τ {np.round(eigenvalues[:LATENT] - tau, 3)}")
        print(f"  active latents {used} of {LATENT}, |cosine| to their axes {np.round(cosines, 5)}")


if __name__ == "__main__":
    main()
