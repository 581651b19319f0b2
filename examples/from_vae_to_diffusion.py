"""From the VAE to diffusion: one bound, number for number, on the same digits and noise.

    python examples/from_vae_to_diffusion.py

With one level, a hierarchical VAE is the VAE, be it a ladder or a Markov chain. With latents of the
data's shape and a fixed linear-Gaussian encoder it is variational diffusion (VDM-1). Read downwards
as a ladder, each of its terms is one of the diffusion's, at every z (VDM-9). Read upwards as a
Markov chain, -ELBO is a ratio of two chains (VDM-7), with the same mean: taken here over both signs
of the noise of every latent, where |noise| = 1.
The nets are untrained: it holds at any weights.
"""

import argparse
from itertools import product

import numpy as np

from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.layers.combinators import Sequential
from scratchgen.maths.forward_process import kernel, q_posterior, q_sample
from scratchgen.maths.gamma import LinearGamma
from scratchgen.maths.likelihoods import DiscretisedLogistic
from scratchgen.maths.parameterisations import KWay
from scratchgen.models.ladder_hvae import LadderHvae
from scratchgen.models.markov_hvae import MarkovHvae
from scratchgen.models.samplers import CLEAN
from scratchgen.models.vae import Vae
from scratchgen.models.vdm import LevelDecoder, Vdm
from scratchgen.models.vdm_as_hvae import IgnoringState, as_ladder_hvae, as_markov_hvae
from scratchgen.nets.mlp import TimedMlp, mlp

DIMS, LATENT, LEVELS = 64, 16, 17


def show(name: str, terms) -> None:
    """A line of terms and their sum, each the mean over the digits and paths in nats."""
    means = [float(np.mean(term)) for term in (*terms, sum(terms))]
    print(f"  {name:9}", *(f"{mean:16.9f}" for mean in means))


def one_level(x: np.ndarray, stream: Stream) -> None:
    """The VAE, the ladder of one level and the chain of one level share their two nets."""
    encoder, decoder = mlp([DIMS, 128, 2 * LATENT]), mlp([LATENT, 128, 2 * DIMS])
    likelihood, nothing = DiscretisedLogistic(LEVELS), Sequential()
    top = None, IgnoringState(encoder), IgnoringState(nothing)
    ladder = LadderHvae([nothing], [top], None, [(LATENT,)], decoder, likelihood)
    FlatParameters(ladder, stream.at("initial"))
    eps = stream.at("eps").normal((len(x), LATENT))
    print("one level, nats a digit: reconstruction, kl, -ELBO")
    show("VAE", Vae(encoder, decoder, likelihood).loss(x, eps[None])[0])
    show("ladder", ladder.loss(x, [eps])[0])
    show("chain", MarkovHvae([encoder], [], [(LATENT,)], decoder, likelihood).loss(x, [eps])[0])


def diffusion(x: np.ndarray, steps: int, stream: Stream) -> None:
    """A diffusion of T steps and the two hierarchies of T + 1 levels that it is."""
    net = TimedMlp([DIMS, 128, LEVELS * DIMS], 32)
    vdm = Vdm(net, LinearGamma(-5.0, 5.0), KWay(LEVELS), LevelDecoder(LEVELS))
    FlatParameters(vdm, stream.at("initial"))
    paths = np.asarray(list(product([-1.0, 1.0], repeat=steps + 1)))
    eta = np.sign(stream.at("eta").normal((steps + 1, 1, *x.shape))) * paths.T[..., None, None]
    eta, x = eta.reshape(steps + 1, -1, DIMS), np.concatenate([x] * len(paths))
    level = [stop.level_beside(x) for stop in [*vdm.stops(steps, x), CLEAN]]
    z = [q_sample(x, eta[0], level[0])[0]]
    for i in range(steps):
        mean, variance = q_posterior(x, z[i], level[i], level[i + 1])
        z.append(mean + np.sqrt(variance) * eta[i + 1])

    def noise(at, below, *levels):
        root_alpha, beta = kernel(*levels)
        return (at - root_alpha * below) / np.sqrt(beta)

    up = list(map(noise, z, [*z[1:], x], level, level[1:]))
    of_x = list(map(noise, z, [x] * steps, level))
    times = [np.full(len(x), 1.0 - i / steps) for i in range(steps)]
    losses = [vdm.loss(x, t, eps, up[-1], steps)[0] for t, eps in zip(times, of_x, strict=True)]
    prior, _, reconstruction = losses[0]  # the same at every t
    print(f"\n{steps} steps, nats a digit: reconstruction, top, every step, -ELBO")
    show("diffusion", [reconstruction, prior, *(terms[1] / steps for terms in losses)])
    show("ladder", as_ladder_hvae(vdm, steps, x).loss(x, eta)[0])
    show("chain", as_markov_hvae(vdm, steps, x).loss(x, up)[0])


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few digits only")
    given = parser.parse_args()
    stream = Stream(given.seed, backend("numpy", "float64"))
    x = stream.backend.asarray(load_digits("train").x[: 2 if given.smoke else 50].reshape(-1, DIMS))
    one_level(x, stream.at("vae"))
    diffusion(x, 3, stream.at("diffusion"))


if __name__ == "__main__":
    main()
