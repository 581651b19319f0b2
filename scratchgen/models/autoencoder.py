"""The deterministic autoencoder, and principal components, which its linear case finds.

    h = encoder(x),   x̂ = decoder(h),   loss ‖x - x̂‖²

No labels, and no distribution on h: one cannot sample from it. That is what the VAE adds.
"""

from scratchgen.core.arrays import example_sum, namespace, per_example, require_shape
from scratchgen.core.module import Module


class Autoencoder(Module):
    """An encoder x -> h and a decoder h -> x̂.

    Args:
        encoder: net from (N, ...) to (N, K).
        decoder: net from (N, K) to the shape of x.

    Source: NET-1
    """

    def __init__(self, encoder, decoder):
        self.encoder, self.decoder = encoder, decoder

    def loss(self, x, stream=None):
        """‖x - x̂‖² per example.

        It equals -log N(x; x̂, ½ I) up to a constant: the reconstruction term of a VAE whose decoder
        variance is ½, without noise and without a prior.

        Args:
            x: (N, ...), data.
            stream: noise for nets that drop out; None evaluates without.

        Returns:
            terms: (squared_error,), (N,) in squared data units.
            pullback: (d_squared_error,), (N,) -> None; adds the parameters' gradients.

        Raises:
            ValueError: x̂ has another shape than x.

        Source: NET-1, VAE-7
        """
        h, encoder_pullback = self.run("encoder", self.encoder, x, stream=stream)
        x_hat, decoder_pullback = self.run("decoder", self.decoder, h, stream=stream)
        require_shape("decoder(h)", x_hat, x.shape)
        gap = x_hat - x

        def pullback(d_squared_error):
            encoder_pullback(decoder_pullback(2.0 * per_example(d_squared_error, gap) * gap))

        return (example_sum(gap * gap),), pullback

    def encode(self, x):
        """x (N, ...) -> h (N, K)."""
        return self.encoder(x)[0]

    def reconstruct(self, x):
        """x (N, ...) -> x̂ (N, ...)."""
        return self.decoder(self.encode(x))[0]


def principal_components(x):
    """The eigenvectors of the covariance of x, by falling eigenvalue.

    The best linear autoencoder with K units spans the first K of them, and its mean loss is the sum
    of the other eigenvalues.

    Args:
        x: (N, D).

    Returns:
        mean (D,), eigenvalues (D,) in squared data units with 1/N, eigenvectors (D, D) in columns.

    Source: NET-2
    """
    xp = namespace(x)
    mean = xp.mean(x, axis=0)
    centred = x - mean
    rising, vectors = xp.linalg.eigh(centred.T @ centred / x.shape[0])
    return mean, xp.flip(rising), xp.flip(vectors, axis=1)
