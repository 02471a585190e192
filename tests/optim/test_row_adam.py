"""RowAdam: torch's Adam where gradients are dense, a float64 oracle row by row where they are sparse."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from extensions.optim import RowAdam

N, WIDTH = 10, 3


def sparse(ids, values, n=N):
    """A sparse gradient as an embedding leaves it: rows named as often as they were looked up."""
    return torch.sparse_coo_tensor(torch.as_tensor(ids).unsqueeze(0), values, (n, values.shape[1]))


def random_batches(steps, seed=0, dtype=torch.float64, size=4):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(N, (size,), generator=generator)
        yield ids, torch.randn(size, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def oracle(w, batches, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, scale=1.0):
    """Adam in Python floats, each row by itself with its own count."""
    w = w.tolist()
    state = {}
    for k, (ids, grads) in enumerate(batches):
        summed = {}
        for i, g in zip(ids.tolist(), grads.tolist(), strict=True):
            old = summed.get(i, [0.0] * WIDTH)
            summed[i] = [a + b for a, b in zip(old, g, strict=True)]
        rate = lr[k] if isinstance(lr, list) else lr
        for i, g in summed.items():
            t, m, v = state.get(i, (0, [0.0] * WIDTH, [0.0] * WIDTH))
            t += 1
            m = [betas[0] * a + (1 - betas[0]) * b for a, b in zip(m, g, strict=True)]
            v = [betas[1] * a + (1 - betas[1]) * b * b for a, b in zip(v, g, strict=True)]
            state[i] = t, m, v
            for j in range(WIDTH):
                m_hat, v_hat = m[j] / (1 - betas[0] ** t), v[j] / (1 - betas[1] ** t)
                w[i][j] -= rate * scale * m_hat / (math.sqrt(v_hat) + eps)
    return torch.tensor(w, dtype=torch.float64)


def table(dtype=torch.float64):
    generator = torch.Generator().manual_seed(99)
    return nn.Parameter(torch.randn(N, WIDTH, generator=generator, dtype=torch.float64).to(dtype))


def run(optimizer, p, batches):
    for ids, values in batches:
        p.grad = sparse(ids, values)
        optimizer.step()


# -- dense parameters --


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("foreach", [None, False, True])
def test_dense_parameters_are_torchs_adam_bit_for_bit(dtype, foreach):
    nets = []
    for make in (RowAdam, torch.optim.Adam):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        optimizer = make(net.parameters(), lr=3e-3, betas=(0.8, 0.99), eps=1e-6, foreach=foreach)
        for _ in range(20):
            optimizer.zero_grad()
            net(torch.randn(5, 4, dtype=dtype)).square().sum().backward()
            optimizer.step()
        nets.append((net, optimizer))
    (ours, our_optimizer), (theirs, their_optimizer) = nets
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    for a, b in zip(our_optimizer.state.values(), their_optimizer.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


# -- sparse rows --


@given(st.integers(0, 2**16), st.integers(1, 12), st.sampled_from([1.0, 10.0, 0.3]))
@settings(max_examples=50, deadline=None)
def test_rows_follow_the_oracle(seed, steps, scale):
    p = table()
    expected = oracle(p.detach(), random_batches(steps, seed), 0.01, (0.8, 0.99), 1e-6, scale)
    optimizer = RowAdam([p], lr=0.01, betas=(0.8, 0.99), eps=1e-6, row_lr_scale=scale)
    run(optimizer, p, random_batches(steps, seed))
    assert torch.allclose(p.detach(), expected, rtol=1e-13, atol=1e-14)


def test_float32_rows_follow_the_oracle():
    p = table(torch.float32)
    expected = oracle(p.detach(), random_batches(300))
    run(RowAdam([p]), p, random_batches(300, dtype=torch.float32))
    assert torch.allclose(p.detach().double(), expected, rtol=1e-4, atol=2e-6)


def test_a_row_met_late_is_corrected_by_its_own_count():
    """Its first step is lr long, as any parameter's first step; SparseAdam's, with a global count, is not."""
    p = table()
    optimizer = RowAdam([p], lr=0.01, eps=1e-12)
    for _ in range(500):
        p.grad = sparse([0], torch.ones(1, WIDTH, dtype=torch.float64))
        optimizer.step()
    before = p.detach()[7].clone()
    p.grad = sparse([7], torch.full((1, WIDTH), 1e-3, dtype=torch.float64))
    optimizer.step()
    assert torch.allclose(before - p.detach()[7], torch.full((WIDTH,), 0.01, dtype=torch.float64), rtol=1e-6)


def test_one_step_is_dense_adam_on_the_rows_touched():
    ids, values = torch.tensor([3, 7, 3]), torch.randn(3, WIDTH, dtype=torch.float64)
    ours, theirs = table(), table()
    ours.grad = sparse(ids, values)
    theirs.grad = ours.grad.to_dense()
    RowAdam([ours]).step()
    torch.optim.Adam([theirs]).step()
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-16)


def test_with_all_rows_in_every_batch_it_is_dense_adam():
    ours, theirs = table(), table()
    optimizers = RowAdam([ours]), torch.optim.Adam([theirs])
    for _ in range(50):
        values = torch.randn(N, WIDTH, dtype=torch.float64)
        ours.grad, theirs.grad = sparse(torch.arange(N), values), values
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(ours, theirs, rtol=1e-13)


def test_rows_not_named_are_left_alone():
    p = table()
    before = p.detach().clone()
    optimizer = RowAdam([p])
    run(optimizer, p, [(torch.tensor([2]), torch.ones(1, WIDTH, dtype=torch.float64))])
    stepped = p.detach()[2].clone()
    run(optimizer, p, [(torch.tensor([5]), torch.ones(1, WIDTH, dtype=torch.float64))] * 3)
    assert torch.equal(p[2], stepped)  # dense Adam's momentum would carry it on
    others = [i for i in range(N) if i not in (2, 5)]
    assert torch.equal(p[others], before[others])
    assert optimizer.rows_touched(p).tolist() == [2, 5]


def test_an_empty_gradient_changes_nothing():
    p = table()
    before = p.detach().clone()
    p.grad = sparse(torch.empty(0, dtype=torch.int64), torch.empty(0, WIDTH, dtype=torch.float64))
    RowAdam([p]).step()
    assert torch.equal(p, before)


def test_a_step_leaves_the_gradient_in_place():
    p = table()
    optimizer = RowAdam([p])
    run(optimizer, p, random_batches(1))
    assert p.grad is not None
    assert p.grad.is_sparse
    optimizer.zero_grad()
    assert p.grad is None


def test_a_parameter_without_gradient_is_skipped():
    p = table()
    optimizer = RowAdam([p])
    optimizer.step()
    assert not optimizer.state
    assert optimizer.rows_touched(p).tolist() == []


def test_closure():
    p = table()
    optimizer = RowAdam([p])

    def closure():
        assert torch.is_grad_enabled()
        p.grad = sparse([0], torch.ones(1, WIDTH, dtype=torch.float64))
        return 42.0

    assert optimizer.step(closure) == 42.0
    assert optimizer.rows_touched(p).tolist() == [0]


# -- groups and schedules --


def test_each_group_has_its_own_rate_and_scale():
    a, b = table(), table()
    optimizer = RowAdam([{"params": [a], "lr": 0.1}, {"params": [b], "row_lr_scale": 5.0}], lr=0.01)
    for p in (a, b):
        p.grad = sparse([0], torch.ones(1, WIDTH, dtype=torch.float64))
    optimizer.step()
    moved = [(table() - p).detach()[0] for p in (a, b)]
    assert torch.allclose(moved[0], torch.full((WIDTH,), 0.1, dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(moved[1], torch.full((WIDTH,), 0.05, dtype=torch.float64), rtol=1e-6)


def test_a_group_added_later_has_the_default_scale():
    optimizer = RowAdam([table()], row_lr_scale=4.0)
    optimizer.add_param_group({"params": [table()]})
    assert [group["row_lr_scale"] for group in optimizer.param_groups] == [4.0, 4.0]


@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_schedule_through_param_groups(tensor_lr):
    p = table()
    rates = [0.1 / (k + 1) for k in range(8)]
    expected = oracle(p.detach(), random_batches(8), rates)
    optimizer = RowAdam([p], lr=torch.tensor(1.0, dtype=torch.float64) if tensor_lr else 1.0)
    for rate, batch in zip(rates, random_batches(8), strict=True):
        if tensor_lr:
            optimizer.param_groups[0]["lr"].fill_(rate)
        else:
            optimizer.param_groups[0]["lr"] = rate
        run(optimizer, p, [batch])
    assert torch.allclose(p.detach(), expected, rtol=1e-12)


def test_torchs_schedulers_drive_it():
    p = table()
    optimizer = RowAdam([p], lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    run(optimizer, p, random_batches(1))
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_step_hooks_run_once():
    torch.optim.Adam([table()])  # patches Adam.step, which RowAdam.step calls
    p = nn.Parameter(torch.ones(2))
    optimizer = RowAdam([p])
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *args: calls.append("post"))
    p.grad = torch.ones(2)
    optimizer.step()
    assert calls == ["pre", "post"]


# -- saving --


def net_and_optimizer():
    torch.manual_seed(0)
    p, dense = table(), nn.Parameter(torch.randn(3, dtype=torch.float64))
    return p, dense, RowAdam([dense, p], lr=0.01, row_lr_scale=3.0)


def steps(p, dense, optimizer, batches):
    for ids, values in batches:
        p.grad, dense.grad = sparse(ids, values), values[0].clone()
        optimizer.step()


@pytest.mark.parametrize("through_file", [False, True])
def test_n_and_n_steps_are_2n_steps(tmp_path, through_file):
    batches = list(random_batches(12))
    whole, half = net_and_optimizer(), net_and_optimizer()
    steps(*whole, batches)
    steps(*half, batches[:6])
    state = half[2].state_dict()
    if through_file:
        torch.save(state, tmp_path / "o.pt")
        state = torch.load(tmp_path / "o.pt", weights_only=True)
    again = net_and_optimizer()
    steps(*again, random_batches(3, seed=5))  # a history that loading must replace
    with torch.no_grad():
        again[0].copy_(half[0])
        again[1].copy_(half[1])
    again[2].load_state_dict(state)
    assert torch.equal(again[2].rows_touched(again[0]), half[2].rows_touched(half[0]))
    steps(*again, batches[6:])
    assert torch.equal(again[0], whole[0])
    assert torch.equal(again[1], whole[1])


def test_a_checkpoint_holds_touched_rows_only_and_whole_counts():
    p = nn.Parameter(torch.zeros(10**5, WIDTH, dtype=torch.bfloat16))
    optimizer = RowAdam([p])
    with torch.no_grad():
        p.grad = sparse([7, 99_999], torch.ones(2, WIDTH, dtype=torch.bfloat16), 10**5)
    optimizer.step()
    optimizer.state[p]["row_step"][99_999] = 1001  # bfloat16 has no 1001: counts must not be cast
    state = optimizer.state_dict()
    assert state["state"][0]["exp_avg"].shape == (2, WIDTH)
    other = RowAdam([nn.Parameter(torch.zeros_like(p))])
    other.load_state_dict(state)
    q = other.param_groups[0]["params"][0]
    assert other.state[q]["row_step"][99_999] == 1001
    assert other.rows_touched(q).tolist() == [7, 99_999]


def test_saving_does_not_disturb():
    a, b = net_and_optimizer(), net_and_optimizer()
    for batch in random_batches(6):
        steps(*a, [batch])
        steps(*b, [batch])
        b[2].state_dict()
    assert torch.equal(a[0], b[0])


def test_a_deep_copy_goes_on_by_itself():
    p, dense, optimizer = net_and_optimizer()
    steps(p, dense, optimizer, random_batches(4))
    p2, dense2, optimizer2 = copy.deepcopy((p, dense, optimizer))
    frozen = p.detach().clone()
    steps(p2, dense2, optimizer2, random_batches(4, seed=7))
    assert torch.equal(p, frozen)
    steps(p, dense, optimizer, random_batches(4, seed=7))
    assert torch.equal(p, p2)


def test_a_checkpoint_of_plain_adam_loads():
    p = nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([p])
    p.grad = torch.ones(3)
    adam.step()
    optimizer = RowAdam([p, table()][:1], row_lr_scale=2.0)
    optimizer.load_state_dict(adam.state_dict())
    assert "row_lr_scale" in optimizer.param_groups[0]
    optimizer.step()


# -- bad arguments --


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"row_lr_scale": 0.0}, "Invalid row_lr_scale: 0.0"),
        ({"row_lr_scale": -1.0}, "Invalid row_lr_scale: -1.0"),
        ({"row_lr_scale": float("nan")}, "Invalid row_lr_scale: nan"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RowAdam([table()], **kwargs)


def test_no_parameters():
    with pytest.raises(ValueError, match="empty parameter list"):
        RowAdam([])


@pytest.mark.parametrize("first_sparse", [True, False])
def test_a_parameter_keeps_to_one_kind_of_gradient(first_sparse):
    p = torch.nn.Parameter(torch.zeros(5, 2))
    optimizer = RowAdam([p])
    dense = torch.ones(5, 2)
    for sparse in (first_sparse, not first_sparse):
        p.grad = dense.to_sparse(1) if sparse else dense
        if sparse == first_sparse:
            optimizer.step()
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="make a new RowAdam"):
        optimizer.step()
    assert torch.equal(p, before)
