"""RADT on a GPU: it computes what the CPU does, and neither training nor acting waits for the host."""

import contextlib
import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, TanhNormal

from extensions.torchrl import (
    OnlineRADTActor,
    OnlineRADTLoss,
    RADTActor,
    RADTLoss,
    RADTPolicy,
    TrajectoryWindows,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICE = "cuda"
B, T, S, A = 8, 7, 5, 3
CONFIG = {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
WINDOW = ["observation", "action", "return_to_go", "timestep", "mask"]
VARIANTS = {
    "the paper's": {},
    "pre-norm": {"placement": "pre"},
    "rmsnorm": {"norm": "rmsnorm"},
    "waves of returns": {"return_embedding": "fourier"},
    "window of 3": {"attention_window": 3},
    "no aligner": {"seqra": False, "stepra": False},
    "three streams": {"architecture": "three_streams"},
}


def make(kind=RADTActor, dtype=torch.float32, **config):
    """On the CPU, with nothing left at 0 or at the identity."""
    torch.manual_seed(0)
    actor = kind(S, A, CONFIG | config).to(dtype)
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return actor


def make_batch(dtype=torch.float32):
    torch.manual_seed(1)
    floats = (torch.randn(B, T, k, dtype=dtype).clamp(-0.9, 0.9) for k in (S, A, 1))
    mask = torch.arange(T) >= torch.tensor([0, 3, 1, 6, 0, 0, 2, 5])[:, None]
    values = (*floats, torch.arange(T).expand(B, T), mask)
    return TensorDict(dict(zip(WINDOW, values, strict=True)), [B, T])


@contextlib.contextmanager
def no_waiting():
    """An operation that waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_features_and_gradients_are_the_cpus(config):
    results = []
    for device in ("cpu", DEVICE):
        actor = make(dtype=torch.float64, **config).to(device)
        batch = make_batch(torch.float64).to(device)
        out = actor(*(batch[name] for name in WINDOW))
        out[batch["mask"]].square().mean().backward()
        results.append([out.detach()[batch["mask"]], *(p.grad for p in actor.parameters())])
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("discrete", [False, True])
def test_training_is_the_cpus(discrete):
    """Five updates, with clipping."""
    weights = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        net = RADTActor(S, A, CONFIG, discrete=discrete).double().to(device)
        actor = TensorDictModule(net, WINDOW, ["logits" if discrete else "action"])
        loss_module = RADTLoss(actor, loss_function="cross_entropy" if discrete else "l2")
        optimizer = torch.optim.AdamW(loss_module.parameters(), lr=1e-3)
        batch = make_batch(torch.float64)
        if discrete:
            batch["action"] = torch.where(batch["mask"], batch["action"].argmax(-1), -1)
        for _ in range(5):
            optimizer.zero_grad()
            loss_module(batch.to(device))["loss"].backward()
            torch.nn.utils.clip_grad_norm_(loss_module.parameters(), 0.25)
            optimizer.step()
        weights.append(torch.nn.utils.parameters_to_vector(loss_module.parameters()).detach().cpu())
    torch.testing.assert_close(*weights, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
def test_single_precision_is_close_to_double(masked):
    """The fused attention kernels are those of half and single precision."""
    batch = make_batch().to(DEVICE)
    inputs = [batch[name] for name in WINDOW[: 5 if masked else 4]]
    real = batch["mask"]
    expected = make().double().to(DEVICE)(*(x.double() if x.is_floating_point() else x for x in inputs))
    actor = make().to(DEVICE)
    torch.testing.assert_close(actor(*inputs)[real].double(), expected[real], rtol=1e-2, atol=1e-2)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = actor(*inputs)
    torch.testing.assert_close(got[real].double(), expected[real], rtol=0.05, atol=0.05)
    got[real].float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in actor.parameters())


@pytest.mark.parametrize("kind", [RADTActor, OnlineRADTActor])
def test_compiled_without_a_break_it_is_the_same(kind):
    results = []
    for compiled in (False, True):
        actor = make(kind).to(DEVICE)
        call = torch.compile(actor, fullgraph=True) if compiled else actor
        batch = make_batch().to(DEVICE)
        out = call(*(batch[name] for name in WINDOW))
        out = torch.cat(out, -1) if isinstance(out, tuple) else out
        out = out[batch["mask"]]
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad for p in actor.parameters())])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-3)


def test_a_training_step_does_not_wait_for_the_device():
    """Windows drawn there, loss, gradients, clipping and update."""
    n, lengths = 400, torch.tensor([100, 1, 99, 200])
    data = TensorDict(
        {
            "observation": torch.randn(n, S),
            "action": torch.randn(n, A),
            "next": {"reward": torch.randn(n, 1)},
            "episode": torch.arange(4).repeat_interleave(lengths),
        },
        [n],
    )
    windows = TrajectoryWindows(data, T, device=DEVICE)
    loss_module = RADTLoss(TensorDictModule(make(resid_pdrop=0.1).to(DEVICE), WINDOW, ["action"]))
    optimizer = torch.optim.AdamW(loss_module.parameters(), fused=True)

    def update():
        optimizer.zero_grad()
        loss = loss_module(windows.sample(B))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(loss_module.parameters(), 0.25)
        optimizer.step()
        return loss.detach()

    update()
    with no_waiting():
        losses = [update() for _ in range(3)]
    assert all(bool(loss.isfinite()) for loss in losses)


def test_acting_from_a_sliding_cache_does_not_wait_for_the_device():
    """And its actions are those of one pass over the whole episodes."""
    window, steps = 4, 10
    net = make(attention_window=window).to(DEVICE)
    policy = RADTPolicy(TensorDictModule(net, WINDOW, ["action"]), window, cache="sliding")
    torch.manual_seed(2)
    observation = torch.randn(B, steps, S, device=DEVICE)
    return_to_go = torch.randn(B, steps, 1, device=DEVICE)
    inputs = [
        TensorDict(
            {
                "observation": observation[:, t],
                "return_to_go": return_to_go[:, t],
                "is_init": torch.full((B, 1), t == 0, device=DEVICE),
            },
            [B],
            device=DEVICE,
        )
        for t in range(steps)
    ]
    policy(inputs[0])
    with no_waiting():
        for step in inputs[1:]:
            policy(step)
    actions = torch.stack([step["action"] for step in inputs], 1)
    assert actions.device.type == DEVICE
    with torch.no_grad():
        expected = net(observation, actions, return_to_go)
    torch.testing.assert_close(actions, expected, rtol=1e-2, atol=1e-3)


def test_the_online_loss_trains_there():
    net = make(OnlineRADTActor).to(DEVICE)
    spec = Bounded(-torch.ones(A, device=DEVICE), torch.ones(A, device=DEVICE))
    module = TensorDictModule(net, WINDOW, ["loc", "scale"])
    actor = ProbabilisticActor(module, spec=spec, in_keys=["loc", "scale"], distribution_class=TanhNormal)
    loss_module = OnlineRADTLoss(actor)
    out = loss_module(make_batch().to(DEVICE))
    sum(out[key] for key in loss_module.out_keys if key.startswith("loss")).backward()
    for name, parameter in loss_module.named_parameters():
        assert parameter.device.type == DEVICE, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


def test_parameters_are_made_there_and_go_back():
    torch.manual_seed(0)
    actor = RADTActor(S, A, CONFIG, DEVICE).eval()
    assert all(x.device.type == DEVICE for x in (*actor.parameters(), *actor.buffers()))
    inputs = [make_batch()[name] for name in WINDOW[:4]]
    back = copy.deepcopy(actor).cpu()
    with torch.no_grad():
        torch.testing.assert_close(
            actor(*(x.to(DEVICE) for x in inputs)).cpu(), back(*inputs), rtol=1e-2, atol=1e-3
        )
