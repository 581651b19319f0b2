"""Autoencoders on digits: a linear one finds the principal components, a deep one beats them.

    python examples/autoencoder_pca.py

Three nets with the same code size K, in the order of their history (NET-1): linear, linear with a
sigmoid, deep and fully connected. For the linear one theory says where it must end (NET-2): the
mean loss is the sum of the trailing eigenvalues of the covariance.
"""

import argparse

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.layers.activations import sigmoid
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.models.autoencoder import Autoencoder, principal_components
from scratchgen.nets.mlp import mlp
from scratchgen.training.fit import batch_indices
from scratchgen.training.optim import Adam, warmup_cosine

BATCH, CODE, WIDTH = 256, 8, 256


def nets(dims: int) -> dict[str, Autoencoder]:
    """The three autoencoders."""
    return {
        "linear": Autoencoder(Linear(dims, CODE, reads_data=True), Linear(CODE, dims)),
        "linear + sigmoid": Autoencoder(
            Sequential(Linear(dims, CODE, reads_data=True), sigmoid), Linear(CODE, dims)
        ),
        "deep": Autoencoder(
            mlp([dims, WIDTH, WIDTH, CODE], reads_data=True), mlp([CODE, WIDTH, WIDTH, dims])
        ),
    }


def train(model: Autoencoder, x: np.ndarray, rate: float, steps: int, stream: Stream) -> None:
    """Adam on the mean squared error of random batches."""
    params = FlatParameters(model, stream.at("initial"))
    adam = Adam(params, warmup_cosine(rate, steps, warmup=steps // 20))
    share = np.full(BATCH, 1.0 / BATCH, dtype=x.dtype)
    for step in range(steps):
        chosen = batch_indices(stream.at("batches"), len(x), BATCH, step)
        _, pullback = model.loss(x[chosen])
        pullback(share)
        adam.step()


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train the three and print their errors beside the principal components'."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()
    steps = 20 if given.smoke else 4000

    stream = Stream(given.seed, backend("numpy"))
    parts = [load_digits(part).x.reshape(-1, 64) for part in ("train", "test")]
    train_x, test_x = (stream.backend.asarray(part) for part in parts)
    mean, eigenvalues, axes = principal_components(parts[0])
    gap = parts[1] - mean
    rest = gap - gap @ axes[:, :CODE] @ axes[:, :CODE].T

    print(f"squared error per digit, pixels in [-1, 1], {CODE} numbers per code")
    print(f"{'':24}{'train':>8}{'test':>8}")
    theory, held = eigenvalues[CODE:].sum(), (rest**2).sum(axis=1).mean()
    print(f"{'principal components':24}{theory:8.3f}{held:8.3f}")
    for name, model in nets(64).items():
        train(model, train_x, 4e-3 if name == "deep" else 2e-2, steps, stream.at(name))
        errors = [float(model.loss(x)[0][0].mean()) for x in (train_x, test_x)]
        print(f"{name:24}{errors[0]:8.3f}{errors[1]:8.3f}")


if __name__ == "__main__":
    main()
