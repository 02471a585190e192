"""What tests of several hosts share."""

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# A busy machine is slow to draw, which is no fault of what is drawn.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

#: operations that read or write a few rows of a table that they are handed whole, or none
BY_ROW = {
    "embedding",
    "index",
    "index_select",
    "index_put_",
    "_index_put_impl_",
    "index_add_",
    "detach",
    "alias",
    "view",
    "unsqueeze",
    "index_fill_",
}


class Watching(TorchDispatchMode):
    """Notes every operation on a dense tensor of ``size`` numbers or more."""

    def __init__(self, size):
        super().__init__()
        self.size, self.seen, self.large = size, set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.seen.add(name)
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        if name not in BY_ROW and any(not x.is_sparse and x.numel() >= self.size for x in tensors):
            self.large.add(name)
        return out


@pytest.fixture
def watching_work_of():
    """For ``with watching_work_of(size) as watching``; operations of that size are in ``watching.large``."""
    return Watching
