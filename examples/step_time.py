"""How long one training step of a small Bernoulli VAE takes on this machine.

    python examples/step_time.py

A step is everything: noise, encoder, decoder, loss, pullbacks, Adam. The net is 64-256-16-256-64 in
float32 at batch 128; the data are random bits, since their values do not matter for the time.
Matrix products use one thread: at this size a second gains nothing, and on a busy machine it costs.
"""

import argparse
import statistics
import time

from threadpoolctl import threadpool_limits

from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import relu
from scratchgen.maths.likelihoods import Bernoulli
from scratchgen.models.vae import Vae
from scratchgen.nets.mlp import mlp
from scratchgen.training.optim import Adam

BATCH, DIMS, HIDDEN, LATENT = 128, 64, 256, 16


def main() -> None:
    """Time the steps and print the median."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()
    steps = 20 if given.smoke else 5000

    stream = Stream(0, backend("numpy"))
    vae = Vae(
        mlp([DIMS, HIDDEN, 2 * LATENT], relu, reads_data=True),
        mlp([LATENT, HIDDEN, DIMS], relu),
        Bernoulli(),
    )
    params = FlatParameters(vae, stream.at("initial"))
    adam = Adam(params)
    x = (stream.at("data").uniform((BATCH, DIMS)) > 0.8).astype("float32")
    share = 0.0 * x[:, 0] + 1.0 / BATCH

    times = []
    with threadpool_limits(1, "blas"):
        for step in range(steps):
            began = time.perf_counter()
            eps = stream.at("eps", step).normal((BATCH, LATENT))
            (reconstruction, kl), pullback = vae.loss(x, eps[None])
            pullback(share, share)
            adam.step()
            times.append(time.perf_counter() - began)
    loss = float(reconstruction.mean() + kl.mean())
    print(f"VAE {DIMS}-{HIDDEN}-{LATENT}, batch {BATCH}, {steps} steps, -ELBO {loss:.2f} nats")
    warm = times[len(times) // 5 :]
    print(f"median {1e3 * statistics.median(warm):.3f} ms a step, fastest {1e3 * min(warm):.3f} ms")


if __name__ == "__main__":
    main()
