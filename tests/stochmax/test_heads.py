"""Heads: one interface, the same values whichever way they are asked, nothing of size n where none is due."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from extensions.stochmax import (
    BoxBins,
    FeatureHead,
    IdCodec,
    LinearHead,
    LowRankHead,
    MixedRadix,
    RowHead,
    TargetRows,
    choose_head,
    make_head,
)
from extensions.stochmax.heads import HEADS, check_memory, memory_bytes

IN, N, B = 5, 24, 3
KINDS = ["linear", "row", "low_rank", "feature"]


def filled(name, n=N, dtype=torch.float64, **kwargs):
    """A head with random numbers where it starts at zero, so that a wrong gather shows."""
    torch.manual_seed(0)
    codec = MixedRadix([n // 4, 4])
    head = make_head(name, IN, codec, **kwargs).to(dtype)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn_like(p))
    return head


def states(dtype=torch.float64):
    return torch.randn(B, IN, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("is_target", [False, True])
def test_some_actions_are_gathered_from_all(name, is_target):
    head, s = filled(name, is_target=is_target), states()
    ids = torch.tensor([[0, N - 1, 7, 7], [1, 2, 3, 4], [N - 1, 0, 0, 5]])
    everything = head(s)
    assert everything.shape == (B, N)
    torch.testing.assert_close(head(s, ids), everything.gather(1, ids))


@pytest.mark.parametrize("name", KINDS)
def test_a_shared_set_equals_the_same_set_for_each_state(name):
    head, s = filled(name), states()
    ids = torch.tensor([0, N - 1, 7, 7])
    assert head(s, ids).shape == (B, 4)
    torch.testing.assert_close(head(s, ids), head(s, ids.expand(B, -1)))


@pytest.mark.parametrize("name", KINDS)
def test_sizes_one(name):
    head, s = filled(name, n=4), states()
    assert head(s[:1], torch.tensor([[2]])).shape == (1, 1)
    assert head(s, torch.empty(B, 0, dtype=torch.int64)).shape == (B, 0)
    assert make_head(name, IN, MixedRadix([1]))(s.float()).shape == (B, 1)


def test_rows_without_dueling_are_a_linear_layer():
    head, s = filled("row", dueling=False), states()
    linear = nn.Linear(IN, N, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(head.rows.weight[:, :-1])
        linear.bias.copy_(head.rows.weight[:, -1])
    assert torch.allclose(head(s), linear(s), rtol=1e-14, atol=1e-14)
    ids = torch.randint(N, (B, 9))
    assert torch.allclose(head(s, ids), linear(s).gather(1, ids), rtol=1e-14, atol=1e-14)


def test_dueling_rows_by_hand():
    head, s = filled("row"), states()
    w = head.rows.weight[7]
    expected = head.value(s)[:, 0] + s @ w[:-1] + w[-1]
    torch.testing.assert_close(head(s, torch.tensor([7]))[:, 0], expected)


def test_low_rank_by_hand():
    head, s = filled("low_rank", rank=6), states()
    assert head.rows.weight.shape == (N, 6)
    expected = head.value(s)[:, 0] + head.project(s) @ head.rows.weight[7]
    torch.testing.assert_close(head(s, torch.tensor([7]))[:, 0], expected)


def test_feature_by_hand():
    head, s = filled("feature", hidden=8), states()
    x = head.codec.features(torch.tensor(7)).double()
    h = torch.relu(head.fuse(torch.relu(head.state(s) + head.action(x))))
    torch.testing.assert_close(head(s, torch.tensor([7])), head.value(s) + head.out(h))


@pytest.mark.parametrize("name", ["row", "low_rank", "feature"])
def test_no_action_starts_with_an_advantage(name):
    head = make_head(name, IN, MixedRadix([6, 4]))
    values = head(states(torch.float32))
    assert torch.equal(values, values[:, :1].expand(-1, N))
    assert len(values[:, 0].unique()) == B  # what they are worth is V(s), not zero


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_a_few_actions_equal_those_through_all(name):
    head, s = filled(name), states()
    ids = torch.tensor([[0, 7], [7, 7], [N - 1, 3]])
    grads = []
    for values in (lambda: head(s, ids), lambda: head(s).gather(1, ids)):
        head.zero_grad()
        values().square().sum().backward()
        grads.append([p.grad.to_dense() for p in head.parameters()])
    assert all(bool((g != 0).any()) for g in grads[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", ["row", "low_rank"])
def test_the_gradient_of_rows_names_the_rows_asked_for(name):
    head = filled(name)
    head(states(), torch.tensor([[0, 7], [7, 7], [N - 1, 3]])).sum().backward()
    assert head.rows.weight.grad.is_sparse
    assert set(head.rows.grad_rows().tolist()) == {0, 3, 7, N - 1}


@pytest.mark.parametrize("name", ["row", "low_rank", "feature"])
def test_gradcheck(name):
    head, ids = filled(name), torch.tensor([[0, 7], [7, 7], [N - 1, 3]])
    assert torch.autograd.gradcheck(lambda s: head(s, ids), states().requires_grad_())


def test_targets_have_target_rows():
    for name in ("row", "low_rank"):
        assert isinstance(make_head(name, IN, IdCodec(N), is_target=True).rows, TargetRows)
        assert not isinstance(make_head(name, IN, IdCodec(N)).rows, TargetRows)
    assert make_head("linear", IN, IdCodec(N)).tables == ()


def test_unknown_head():
    with pytest.raises(ValueError, match=r"unknown head 'rows'; choose from 'auto', 'linear', 'row'"):
        make_head("rows", IN, IdCodec(N))


def test_features_need_a_codec_that_has_them():
    with pytest.raises(TypeError, match="no action features"):
        make_head("feature", IN, IdCodec(N))


@pytest.mark.parametrize(
    ("codec", "head"),
    [
        (IdCodec(2), "linear"),
        (IdCodec(512), "linear"),
        (MixedRadix([16, 32]), "linear"),
        (IdCodec(513), "row"),
        (IdCodec(65_535), "row"),
        (IdCodec(65_536), "low_rank"),
        (IdCodec(10**9), "low_rank"),
        (MixedRadix([513]), "feature"),
        (MixedRadix([10] * 9), "feature"),
        (BoxBins([-1] * 6, [1] * 6, 11), "feature"),
    ],
    ids=lambda x: x if isinstance(x, str) else f"{type(x).__name__}-{x.n}",
)
def test_the_rule_of_auto(codec, head):
    assert choose_head(codec) == head


# -- memory --


@pytest.mark.parametrize("name", KINDS)
def test_the_memory_stated_is_that_of_the_parameters(name):
    codec = MixedRadix([6, 4])
    head = make_head(name, IN, codec)
    rows = sum(p.numel() for p in head.parameters())
    stated = HEADS[name].floats(IN, codec)
    # the small dense layers beside a table go without saying
    assert stated == (head.rows.weight.numel() if head.tables else rows)
    assert memory_bytes(name, IN, codec) == (20 if name == "linear" else 16) * stated


@pytest.mark.parametrize(
    ("name", "codec", "says"),
    [
        ("row", IdCodec(10**9), r"4,112 GB.*head='feature' would fit at any n, given an action_codec"),
        ("low_rank", IdCodec(10**9), r"512 GB.*head='feature' would fit at any n"),
        ("linear", MixedRadix([10] * 9), r"5,140 GB.*head='feature' would fit \("),
        ("row", IdCodec(10**6), r"4.11 GB.*head='low_rank' would fit \(0.512 GB\)"),
        ("linear", IdCodec(10**5), None),
    ],
)
def test_a_head_that_cannot_fit_is_refused_by_name_and_size(name, codec, says):
    if says is None:
        return check_memory(name, 256, codec, available=2 * 10**9)
    with pytest.raises(MemoryError, match=says):
        check_memory(name, 256, codec, available=2 * 10**9)


def test_where_memory_is_unknown_nothing_is_refused(monkeypatch):
    monkeypatch.setattr("extensions.stochmax.heads.available_bytes", lambda device="cpu": None)
    check_memory("row", 256, IdCodec(10**12))


def test_features_serve_a_billion_actions():
    codec = MixedRadix([10] * 9)
    head = FeatureHead(IN, codec)
    assert sum(p.numel() for p in head.parameters()) < 20_000
    ids = torch.tensor([[0, codec.n - 1]] * B)
    head(states(torch.float32), ids).sum().backward()
    assert head(states(torch.float32), ids).shape == (B, 2)


def peak_growth(code: str) -> float:
    """MB by which the resident memory of a fresh process grew while it ran ``code``."""
    program = textwrap.dedent("""
        import torch
        from extensions.optim import RowAdam
        from extensions.stochmax import *

        def resident():
            lines = open("/proc/self/status").read().splitlines()
            return int(next(l for l in lines if l.startswith("VmHWM")).split()[1])

        torch.zeros(8).sum(), RowAdam([torch.nn.Parameter(torch.zeros(2))])
        before = resident()
        """)
    program += textwrap.dedent(code) + "\nprint((resident() - before) / 1024)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(
    "head", ["LowRankHead(64, IdCodec(10**6), {})", "FeatureHead(64, MixedRadix([10] * 9), {})"]
)
def test_building_and_saving_touch_no_page_of_a_table(head, steps):
    """A table of 10**6 x 32 float32 is 128 MB; with target and moments there are four.

    Where the system backs a touched row by a huge page, a few steps may touch all of them, but no more.
    """
    code = f"""
        head, target = {head.format(False)}, {head.format(True)}
        target.load_state_dict(head.state_dict())
        for t, o in zip(target.tables, head.tables):
            t.follow(o)
        optimizer = RowAdam(head.parameters())
        for _ in range({steps}):
            optimizer.zero_grad()
            head(torch.randn(32, 64), torch.randint(10**6, (32, 1))).sum().backward()
            for t, o in zip(target.tables, head.tables):
                t.before_update(o.grad_rows())
            optimizer.step()
        for t in target.tables:
            t.sync(1.0)
        torch.save((head.state_dict(), optimizer.state_dict()), __import__("io").BytesIO())
    """
    assert peak_growth(code) < (560 if steps and "LowRank" in head else 40)


def test_classes_are_what_the_names_say():
    assert (LinearHead, RowHead, LowRankHead, FeatureHead) == tuple(HEADS.values())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("row", "takes dueling"),
        ("low_rank", "takes rank"),
        ("feature", "takes hidden"),
        ("linear", "takes none"),
    ],
)
def test_an_unknown_argument_of_a_head(name, says):
    with pytest.raises(TypeError, match=rf"head='{name}' has no argument 'rnk'; it {says}"):
        make_head(name, 8, MixedRadix([10, 10]), rnk=3)
    with pytest.raises(TypeError, match="has no argument 'rnk'"):
        check_memory(name, 8, MixedRadix([10, 10]), rnk=3)
