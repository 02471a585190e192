"""The core on a GPU: everything stays there, and computes what the CPU does."""

import copy

import pytest
import torch

from extensions.optim import RowAdam, clip_grad_norm_
from extensions.stochmax import (
    BoxBins,
    CachedArgmax,
    Elite,
    IdCodec,
    MixedRadix,
    Neighbours,
    Query,
    RecentExploited,
    ReplayActions,
    SampledMaximum,
    Uniform,
    make_head,
    maximise,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
B, D = 8, 16
CODECS = {
    "linear": IdCodec(500),
    "row": IdCodec(10_000),
    "low_rank": IdCodec(10_000),
    "feature": BoxBins([-1.0] * 6, [1.0] * 6, 10),
}


@pytest.mark.parametrize(
    "codec", [IdCodec(10**6), MixedRadix([10] * 6), BoxBins([-1.0], [1.0], 10**6)], ids=str
)
def test_every_source_proposes_on_the_device(codec):
    codec = codec.cuda()
    sources = [
        Uniform(),
        Uniform(4, shared=True),
        ReplayActions(),
        CachedArgmax(),
        RecentExploited(),
        Elite(),
    ]
    if codec.feature_dim:
        sources.append(Neighbours(rounds=2))
    query = Query(
        B,
        torch.device("cuda"),
        torch.randn(B, 3, device="cuda"),
        replay=lambda k: torch.randint(codec.n, (k,), device="cuda"),
        cached=torch.randint(codec.n, (B,), device="cuda"),
    )
    best = SampledMaximum(sources, codec)(lambda _, ids: torch.sin(ids.double()).expand(B, -1), None, query)
    assert all(t.is_cuda and t.shape == (B,) for t in best)
    assert bool(((best.action >= 0) & (best.action < codec.n)).all())
    for source in sources:
        source.executed(query.obs, best.action)
        source.maximised(query, best)


@pytest.mark.parametrize("name", CODECS)
def test_heads_train_as_on_the_cpu(name):
    """Five updates of head, RowAdam, clipping and the target's lazy polyak: the CPU's numbers to rounding."""
    torch.manual_seed(0)
    cpu = [
        make_head(name, D, copy.deepcopy(CODECS[name]), is_target=target).double() for target in (False, True)
    ]
    gpu = [copy.deepcopy(head).cuda() for head in cpu]
    states, targets = torch.randn(5, B, D).double(), torch.randn(5, B, 1).double()
    ids = torch.randint(CODECS[name].n, (5, B, 1)) // 50 * 50  # some more than once
    values = []
    for (online, target), device in ((cpu, "cpu"), (gpu, "cuda")):
        target.load_state_dict(online.state_dict())
        for rows, online_rows in zip(target.tables, online.tables, strict=True):
            rows.follow(online_rows)
        optimizer = RowAdam(online.parameters(), lr=0.01, row_lr_scale=10.0)
        for s, i, y in zip(states.to(device), ids.to(device), targets.to(device), strict=True):
            optimizer.zero_grad()
            (online(s, i) - y).square().mean().backward()
            clip_grad_norm_(online.parameters(), 1.0)
            for rows, online_rows in zip(target.tables, online.tables, strict=True):
                rows.before_update(online_rows.grad_rows())
            optimizer.step()
            for rows in target.tables:
                rows.sync(0.1)
        values += [head(states[0].to(device), ids[0].to(device)).detach().cpu() for head in (online, target)]
    for on_cpu, on_gpu in zip(values[:2], values[2:], strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CODECS)
def test_the_maximum_is_the_cpus(name):
    torch.manual_seed(0)
    head = make_head(name, D, CODECS[name]).double()
    for p in head.parameters():
        torch.nn.init.normal_(p)
    states, ids = torch.randn(B, D).double(), torch.randint(CODECS[name].n, (B, 40))
    on_cpu = maximise(head, states, ids)
    on_gpu = maximise(head.cuda(), states.cuda(), ids.cuda())
    assert torch.equal(on_gpu.action.cpu(), on_cpu.action)
    torch.testing.assert_close(on_gpu.value.cpu(), on_cpu.value)
