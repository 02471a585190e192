"""What the tests of several worlds share."""

import numpy as np
import pytest
import torch


class SideBySide:
    """The same episodes of a world with numpy, with torch, and one by one in Python's numbers if it takes
    them; whatever is asked of them must be equal, dtypes included, to the last bit or up to ``rtol``."""

    def __init__(self, world, number, seed=0):
        self.world = world
        keys = np.random.default_rng(seed).integers(2**62, size=number)
        self.numpy, self.torch = world.reset(keys), world.reset(torch.tensor(keys))
        self.alone = [] if world.batched else [world.reset(key) for key in keys.tolist()]
        self._check_states()

    def same(self, method, *ids, rtol=0.0):
        """What ``method`` makes of numpy's states, and ids ``(number,)``; the others must have the same."""
        ours = method(self.numpy, *ids)
        theirs = method(self.torch, *map(torch.tensor, ids))
        alone = [method(one, *(x[i].item() for x in ids)) for i, one in enumerate(self.alone)]
        _check(ours, theirs, alone, rtol)
        return ours

    def step(self, ids, rtol=0.0):
        """Step all of them, and leave numpy's states before it alone; ``rtol`` is that of the rewards.
        Returns whether each episode terminated."""
        before, kept = self.numpy, {name: x.copy() for name, x in self.numpy.items()}
        self.numpy, rewards, ends = self.world.step(before, ids)
        self.torch, tensor_rewards, tensor_ends = self.world.step(self.torch, torch.tensor(ids))
        stepped = [self.world.step(one, i) for one, i in zip(self.alone, ids.tolist(), strict=False)]
        self.alone = [one[0] for one in stepped]
        assert all(np.array_equal(kept[name], before[name]) for name in kept)
        assert (rewards.dtype, ends.dtype) == (np.float64, bool)
        assert all(type(one[1]) is float and type(one[2]) is bool for one in stepped)
        _check(rewards, tensor_rewards, [one[1] for one in stepped], rtol)
        _check(ends, tensor_ends, [one[2] for one in stepped])
        self._check_states()
        return ends

    def _check_states(self):
        assert self.numpy.keys() == self.torch.keys()
        for name, x in self.numpy.items():
            _check(x, self.torch[name], [one[name] for one in self.alone])
        assert self.same(self.world.observe).dtype == np.float32

    def check_features(self, ids):
        """The features of ``ids`` must be equal as well."""
        features = self.world.action_features(ids)
        assert features.dtype == np.float32
        _check(features, self.world.action_features(torch.tensor(ids)), [])


def _check(ours, theirs, alone, rtol=0.0):
    assert str(theirs.dtype) == f"torch.{ours.dtype}"
    for others in (theirs.numpy(), np.stack(alone) if alone else ours):
        if rtol:
            np.testing.assert_allclose(ours, others, rtol=rtol)
        else:
            np.testing.assert_array_equal(ours, others)


@pytest.fixture
def side_by_side():
    return SideBySide
