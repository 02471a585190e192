"""Compiled without a break in the graph, and in bfloat16, RADT computes what it does in plain float32."""

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from extensions.torchrl import OnlineRADTActor, RADTActor, RADTLoss

B, T, S, A = 4, 5, 3, 2
CONFIG = {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
WINDOW = ["observation", "action", "return_to_go", "timestep", "mask"]
VARIANTS = {
    "the paper's": {},
    "pre-norm, waves, window": {"placement": "pre", "return_embedding": "fourier", "attention_window": 3},
    "no aligner": {"seqra": False, "stepra": False},
    "three streams": {"architecture": "three_streams"},
}


def make(kind=RADTActor, **config):
    torch.manual_seed(0)
    actor = kind(S, A, CONFIG | config)
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return actor


def make_batch(n=None):
    torch.manual_seed(1)
    observation, action, return_to_go = (torch.randn(B, T, k) for k in (S, A, 1))
    if n is not None:
        action = torch.randint(n, (B, T))
    mask = torch.arange(T) >= torch.tensor([0, 3, 1, 4])[:, None]
    timestep = torch.arange(T).expand(B, T)
    values = (observation, action, return_to_go, timestep, mask)
    return TensorDict(dict(zip(WINDOW, values, strict=True)), [B, T])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        ("the paper's", True),
        ("pre-norm, waves, window", False),
        *(
            pytest.param(name, masked, marks=pytest.mark.slow)
            for name in VARIANTS
            for masked in (True, False)
        ),
    ],
)
def test_the_graph_has_no_break(name, masked):
    """With the tracer alone, which is quick; the code it would write is tested below."""
    actor = make(**VARIANTS[name])
    batch = make_batch()
    inputs = [batch[name] for name in WINDOW[: 5 if masked else 3]]
    compiled = torch.compile(actor, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), actor(*inputs))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RADTActor, OnlineRADTActor])
def test_compiled_actions_and_gradients_are_the_plain_ones(kind):
    results = []
    for compiled in (False, True):
        actor = make(kind)
        call = torch.compile(actor, fullgraph=True) if compiled else actor
        out = call(*(make_batch()[name] for name in WINDOW))
        out = torch.cat(out, -1) if isinstance(out, tuple) else out
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad for p in actor.parameters())])
    for got, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss_function", ["l2", "cross_entropy"])
def test_a_compiled_training_step_is_the_plain_one(loss_function):
    """Loss, gradients and clipping in one graph, several updates."""
    discrete = loss_function == "cross_entropy"
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        actor = TensorDictModule(
            RADTActor(S, A, CONFIG, discrete=discrete), WINDOW, ["logits" if discrete else "action"]
        )
        loss_module = RADTLoss(actor, loss_function=loss_function)
        optimizer = torch.optim.AdamW(loss_module.parameters(), lr=1e-3)

        def loss_of(batch, loss_module=loss_module):
            return loss_module(batch)["loss"]

        loss_of = torch.compile(loss_of, fullgraph=True) if compiled else loss_of
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(make_batch(A if discrete else None)).backward()
            torch.nn.utils.clip_grad_norm_(loss_module.parameters(), 0.25)
            optimizer.step()
        weights.append(torch.nn.utils.parameters_to_vector(loss_module.parameters()))
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_autocast_is_close_and_leaves_the_return_in_float32(config):
    actor = make(**config)
    inputs = [make_batch()[name] for name in WINDOW]
    expected = actor(*inputs)
    embed, embedded = actor.transformer.embed_return, []
    if embed is not None:
        hook = embed.register_forward_hook(lambda _m, _x, out: embedded.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        got = actor(*inputs)
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
    assert not torch.equal(got.float(), expected)  # it was at work
    got.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in actor.parameters())
    if embed is not None:
        hook.remove()
        (c,) = embedded
        assert c.dtype == torch.float32
        real = inputs[4]
        assert torch.equal(c[real], embed(inputs[2])[real])


@pytest.mark.parametrize("embedding", ["linear", "mlp", "fourier"])
def test_returns_a_thousandth_apart_differ_under_autocast(embedding):
    """Eight bits tell 10.00 from 10.06 at best."""
    actor = make(return_embedding=embedding)
    embed = actor.transformer.embed_return
    r = torch.tensor([[10.0], [10.01]])
    with torch.autocast("cpu", torch.bfloat16):
        low, high = embed(r)
    assert low.dtype == torch.float32
    assert (high - low).abs().max() > 1e-3


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_module_of_bfloat16(config):
    """Times and waves are computed in float32 still."""
    actor = make(**config)
    inputs = [make_batch()[name] for name in WINDOW]
    inputs[3] = inputs[3] + 900  # no number of eight bits
    expected = actor(*inputs)
    small = copy.deepcopy(actor).bfloat16()
    got = small(*(x.bfloat16() if i in (0, 1) else x for i, x in enumerate(inputs)))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)
    times = [a.transformer.embed_time(inputs[3]) for a in (small, actor)]
    torch.testing.assert_close(times[0].float(), times[1], rtol=0.05, atol=0.02)
