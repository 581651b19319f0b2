"""core/parallel.py: the group of one."""

import numpy as np

from scratchgen.core.parallel import Solo
from scratchgen.layers.affine import Linear

from support import bound, normals


def test_solo_runs_the_whole_batch_into_the_one_gradient():
    net = Linear(2, 3)
    params, x = bound(net), normals(0, 5, 2)

    def shard(rows):
        y, pullback = net(x[rows])
        pullback(np.ones_like(y))
        return {"size": y[:, 0]}

    terms = Solo().run(params, shard, 5)
    assert terms["size"].shape == (5,)
    want = np.concatenate([np.tile(x.sum(axis=0), 3), np.full(3, 5.0)])
    np.testing.assert_allclose(params.grad, want)


def test_solo_updates_whole_vectors_in_place():
    a, b = normals(0, 7), normals(1, 7)
    want, seen = a + b, []

    def update(x, y):
        seen.append((x, y))
        x += y

    Solo().elementwise(update, a, b)
    assert len(seen) == 1
    assert seen[0][0] is a
    assert seen[0][1] is b
    np.testing.assert_array_equal(a, want)
