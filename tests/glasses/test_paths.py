"""Paths through the layers, against enumeration and closed forms."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from extensions.glasses import (
    HFCausalLM,
    Lens,
    bound_check,
    lipschitz_bound,
    path_counts,
    path_profile,
    sensitivity_profile,
)
from extensions.glasses.paths import spearman
from recipes.bench.glasses_theory import paths, random_llama, random_tokens


def random_attention(layers=3, n=5, heads=2, seed=0):
    """Causal and stochastic, (1, H, n, n) each."""
    generator = torch.Generator().manual_seed(seed)
    later = torch.ones(n, n).bool().triu(1)
    scores = torch.randn(layers, 1, heads, n, n, generator=generator, dtype=torch.float64)
    return list(scores.masked_fill(later, -math.inf).softmax(-1))


def enumerated(steps, target):
    """Sum over all ways i = k_0 <= k_1 <= .. <= k_L = target of the product of (A / beta + I)[k_l+1, k_l]."""
    n = len(steps[0])
    sums = torch.zeros(n, dtype=torch.float64)
    for way in itertools.product(range(n), repeat=len(steps)):
        path = (*way, target)
        sums[path[0]] += math.prod(
            step[b, a].item() for step, a, b in zip(steps, path, path[1:], strict=False)
        )
    return sums


@pytest.mark.parametrize("beta1", [1.0, 2.0])
@pytest.mark.parametrize("target", [-1, 3])
def test_the_sum_over_paths(beta1, target):
    attention = random_attention()
    steps = [a[0].mean(0) / beta1 + torch.eye(5) for a in attention]
    found = path_profile(attention, beta1=beta1, target=target)
    assert torch.allclose(found[0], enumerated(steps, target % 5))


def test_half_the_residual():
    attention = random_attention()
    steps = [(a[0].mean(0) + torch.eye(5)) / 2 for a in attention]
    found = path_profile(attention, residual="half")
    assert torch.allclose(found[0], enumerated(steps, 4))
    assert found.sum().item() == pytest.approx(1)


def test_heads():
    attention = random_attention()
    largest = [a[0].amax(0) + torch.eye(5) for a in attention]
    assert torch.allclose(path_profile(attention, heads="max")[0], enumerated(largest, 4))
    norms = torch.tensor([[1.0, 2.0], [0.5, 0.0], [3.0, 1.0]])
    weighted = [
        torch.einsum("hij,h->ij", a[0], w.double()) + torch.eye(5)
        for a, w in zip(attention, norms, strict=True)
    ]
    found = path_profile(attention, heads="ov_norm", head_norms=norms)
    assert torch.allclose(found[0], enumerated(weighted, 4))


@pytest.mark.parametrize("window", [None, 1, 2, 4])
@pytest.mark.parametrize(("n", "layers"), [(1, 3), (5, 1), (4, 3)])
def test_counts_against_enumeration(n, layers, window):
    expected = [0] * n
    for way in itertools.product(range(n), repeat=layers):
        path = (*way, n - 1)
        if all(0 <= b - a < (window or n) for a, b in itertools.pairwise(path)):
            expected[path[0]] += 1
    assert path_counts(n, layers, window) == expected


def test_counts_are_exact_where_floats_are_not():
    assert path_counts(2000, 12)[0] == math.comb(2010, 11)
    assert path_counts(2000, 12)[-1] == 1


def test_many_layers_leave_the_first_token_alone():
    """Proposition B.8: the same A in all layers, with (A + I) / 2."""
    (one,) = random_attention(layers=1, n=6, heads=1)
    found = path_profile([one] * 500, residual="half")[0]
    assert torch.allclose(found, F.one_hot(torch.tensor(0), 6).double(), atol=1e-6)


def test_where_the_decay_of_positions_fails():
    """Proposition B.4: scores 1, 0, 1, 0, .. and 0, 1, 0, 1, .. stay apart, by 2 (e - 1) / (e + 1)."""
    scores = torch.arange(100_000).remainder(2).double()
    distance = (scores.softmax(0) - (1 - scores).softmax(0)).abs().sum().item()
    assert distance == pytest.approx(2 * (math.e - 1) / (math.e + 1), abs=1e-4)
    assert distance == pytest.approx(0.924, abs=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_counting_needs_a_mask_or_positions(causal):
    """Proposition 6.1: without both, '10' and '1100' are one state; a mask alone tells them apart."""
    torch.manual_seed(0)
    tokens = torch.randn(2, 8).double()

    def state(ids):
        x = tokens[torch.tensor(ids)][None]
        for _ in range(2):
            x = x + F.scaled_dot_product_attention(x, x, x, is_causal=causal)
        return x[0, ids.index(1)]

    same = torch.allclose(state([1, 0]), state([1, 1, 0, 0]), atol=1e-12)
    assert same or causal
    if causal:
        assert not torch.allclose(state([0, 1]), state([0, 0, 1, 1]))


def test_flat_attention_follows_its_paths_and_sharp_attention_does_not():
    flat, sharp = (paths(std, 0, 96) for std in (0.02, 0.2))
    assert flat["spearman_full"] > 0.95
    assert flat["frozen_over_full"] > 0.99
    assert sharp["spearman_full"] < 0.85
    assert sharp["frozen_over_full"] < 0.3
    assert flat["violations"] == sharp["violations"] == 0


@pytest.mark.parametrize("std", [0.02, 0.1, 0.3])
def test_the_bound_is_never_exceeded(std):
    model, ids = random_llama(std, 1, width=32, layers=3), random_tokens(24, 1)
    profile = sensitivity_profile(model, ids, mode="spectral", attention="frozen")
    check = bound_check(profile, lipschitz_bound(model, ids))
    assert check.rigorous
    assert check.violations == 0
    assert check.tokens == 24
    assert check.log_ratio_min > 0


def test_a_smaller_bound_would_be_exceeded():
    model, ids = random_llama(0.1, 1, width=32, layers=3), random_tokens(24, 1)
    profile = sensitivity_profile(model, ids, mode="spectral", attention="frozen")
    bound = lipschitz_bound(model, ids)
    smaller = bound.values * (profile.spec / bound.values).amin() * 0.99
    assert bound_check(profile, dataclasses.replace(bound, values=smaller)).violations >= 1


def test_a_bound_is_called_one_only_when_it_is():
    model, ids = random_llama(0.1, 0, width=32, layers=2), random_tokens(8, 0)
    path, bound = path_profile(model.attentions(model.embed(ids))), lipschitz_bound(model, ids)
    for kind in ({"mode": "exact"}, {"mode": "hutchinson", "attention": "frozen"}, {"mode": "spectral"}):
        with pytest.raises(ValueError, match="frozen attention: ask for sensitivity_profile"):
            bound_check(sensitivity_profile(model, ids, **kind), bound)
    frozen = {"mode": "spectral", "attention": "frozen"}
    assert not bound_check(sensitivity_profile(model, ids, **frozen), path).rigorous
    for kind in ({"output": "logits"}, {"output": lambda x: x}, {"source_layer": 1}, {"target_layer": 1}):
        with pytest.raises(ValueError, match="the bound is of the state of layer 2 by that of layer 0"):
            bound_check(sensitivity_profile(model, ids, **frozen, **kind), bound)
    with pytest.raises(ValueError, match=r"of tokens \[7\], the profile of \[4\]: give both the same target"):
        bound_check(sensitivity_profile(model, ids, target=4, **frozen), bound)
    with pytest.raises(ValueError, match="other sequences"):
        bound_check(sensitivity_profile(model, ids, **frozen), path[:, :5])


def test_an_earlier_target_is_bounded_too():
    model, ids = random_llama(0.1, 0, width=32, layers=2), random_tokens(8, 0)
    profile = sensitivity_profile(model, ids, target=4, mode="spectral", attention="frozen")
    bound = lipschitz_bound(model, ids, target=4)
    assert bound.target.tolist() == [4]
    assert bound_check(profile, bound).violations == 0
    assert (bound.values[:, 5:] == 0).all()
    with pytest.raises(ValueError, match="position 8 is outside"):
        lipschitz_bound(model, ids, target=8)


def test_biases_do_not_matter_to_the_bound():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    model = HFCausalLM(Qwen2ForCausalLM(config).eval())
    with torch.no_grad():
        for block in model.blocks:
            block.self_attn.v_proj.bias.normal_()
    ids = random_tokens(12, 0)
    profile = sensitivity_profile(model, ids, mode="spectral", attention="frozen")
    assert bound_check(profile, lipschitz_bound(model, ids)).violations == 0


@pytest.mark.parametrize("place", ["self_attn.v_proj", "mlp.down_proj"])
def test_the_bound_refuses_matrices_that_are_more_than_their_weight(place):
    peft = pytest.importorskip("peft")
    model = random_llama(0.1, 0, width=32, layers=2)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[place.rpartition(".")[2]])
    adapted = HFCausalLM(peft.get_peft_model(model.module, config).eval())
    with pytest.raises(
        TypeError, match=f"{place} of layer 0 is peft.*Linear: merge adapters .merge_and_unload"
    ):
        lipschitz_bound(adapted, random_tokens(4, 0))


def test_the_bound_knows_its_models():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = HFCausalLM(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2)).eval())
    with pytest.raises(TypeError, match="knows the layers of llama, mistral, qwen2; got GPT2LMHeadModel"):
        lipschitz_bound(model, random_tokens(4, 0))
    mask = torch.tensor([[0, 1, 1, 1]])
    with pytest.raises(ValueError, match="without padding"):
        lipschitz_bound(random_llama(0.1, 0), {"input_ids": random_tokens(4, 0), "attention_mask": mask})


def test_rank_correlation():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(
        0.866, abs=1e-3
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": "sum"}, 'heads must be "mean", "max" or "ov_norm"'),
        ({"residual": "none"}, 'residual must be "sum" or "half"'),
        ({"heads": "ov_norm"}, "head_norms"),
        ({"head_norms": torch.ones(3, 2)}, "head_norms"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        path_profile(random_attention(), **change)


def test_nothing_to_go_through():
    with pytest.raises(ValueError, match="no attentions: the model hides them"):
        path_profile([])
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        path_counts(0, 2)


def test_paths_of_a_lens():
    """Those of a window are what the window leaves."""
    model, ids = random_llama(0.02, 0, width=16, layers=2), random_tokens(12, 0)
    weights = []
    with torch.no_grad(), model.looking(Lens(window=3, record=weights.append)):
        model.states(model.embed(ids))
    path = path_profile(weights)[0]
    assert (path[: 12 - 1 - 2 * 2] == 0).all()
    assert (path[12 - 1 - 2 * 2 :] > 0).all()
