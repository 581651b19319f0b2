"""A classifier on top of features: what an encoder has learned, measured by labels.

Trained on the data itself, it also gives the features on which samples are compared with it.
"""

import hashlib

from scratchgen.core.arrays import namespace, require_codes, require_shape, to_host
from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.numerics import logsumexp
from scratchgen.maths.distributions import categorical_nll


class Classifier(Module):
    """p(label | x) = softmax(head(trunk(x))).

    Args:
        trunk: net from x to features (N, F), such as a pretrained encoder's first layers.
        head: net from features to logits (N, classes).
        frozen_trunk: give the trunk no gradient, so that only the head learns. (Weight decay would
            still shrink it; train without.)

    Source: NET-3
    """

    def __init__(self, trunk, head, frozen_trunk: bool = False):
        self.trunk, self.head, self.frozen_trunk = trunk, head, frozen_trunk

    def loss(self, x, labels, stream=None):
        """-log p(label | x), the softmax loss.

        Args:
            x: (N, ...), data.
            labels: (N,), int64 in 0..classes-1.
            stream: noise for nets that drop out; None evaluates without.

        Returns:
            terms: (nll,), (N,) in nats.
            pullback: (d_nll,), (N,) -> None; adds the gradients of whatever is not frozen.

        Raises:
            ValueError: there is not one label for each example, or one is no class.

        Source: NET-3
        """
        features, trunk_pullback = self.run("trunk", self.trunk, x, stream=stream)
        logits, head_pullback = self.run("head", self.head, features, stream=stream)
        require_shape("labels", labels, x.shape[:1])
        require_codes("labels", labels, logits.shape[1])
        nll, nll_pullback = categorical_nll(labels, logits)

        def pullback(d_nll):
            d_features = head_pullback(nll_pullback(d_nll))
            if not self.frozen_trunk:
                trunk_pullback(d_features)

        return (nll,), pullback

    def predict(self, x):
        """The most probable label: x (N, ...) -> (N,) int64."""
        logits = self.head(self.trunk(x)[0])[0]
        return namespace(logits).argmax(logits, axis=1)

    def features(self, x):
        """The trunk's output: x (N, ...) -> (N, F).

        All of x at once; of a large set take `metrics.likelihood.in_batches`.
        """
        return self.trunk(x)[0]

    def log_probabilities(self, x):
        """log p(label | x) = log softmax(head(trunk(x))): x (N, ...) -> (N, classes), nats.

        Source: NET-3
        """
        logits = self.head(self.trunk(x)[0])[0]
        return logits - logsumexp(logits)[:, None]


def weight_hash(params: FlatParameters) -> str:
    """Twelve hexadecimal digits that name a network's weights: of SHA-256 of the bytes of θ.

    Distances on features of two networks do not compare; so say which it was.
    """
    return hashlib.sha256(to_host(params.theta).tobytes()).hexdigest()[:12]
