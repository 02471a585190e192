"""The cache of keys and values is exact: a step from it is a row of one pass over the whole episode."""

import itertools

import pytest
import torch

from extensions.torchrl.radt.cache import StepCache
from extensions.torchrl.radt.model import RADTransformer

STATES, ACTIONS, WINDOW = 3, 2, 4
VARIANTS = {
    "the paper's": {},
    "no seqra": {"seqra": False},
    "no stepra": {"stepra": False},
    "no aligner": {"seqra": False, "stepra": False},
    "no gate": {"alpha_gate": False},
    "pre-norm": {"placement": "pre"},
    "pre-norm without aligners": {"placement": "pre", "seqra": False, "stepra": False},
    "rmsnorm": {"norm": "rmsnorm"},
    "fourier": {"return_embedding": "fourier"},
    "one layer": {"n_layer": 1},
    "four layers": {"n_layer": 4},
}


def make_model(dtype=torch.float64, discrete=False, **config):
    """Nothing is left at 0 or at the identity, so that every part counts."""
    settings = {"n_embd": 8, "n_layer": 2, "n_head": 2, "attention_window": WINDOW} | config
    torch.manual_seed(0)
    model = RADTransformer(STATES, ACTIONS, settings, discrete=discrete).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def make_episodes(batch, steps, dtype=torch.float64, discrete=False, seed=1):
    """Observations, actions and returns to go, (batch, steps, ..)."""
    torch.manual_seed(seed)
    actions = torch.randint(ACTIONS, (batch, steps)) if discrete else torch.randn(batch, steps, ACTIONS)
    return (
        torch.randn(batch, steps, STATES).to(dtype),
        actions if discrete else actions.to(dtype),
        torch.randn(batch, steps, 1).to(dtype),
    )


def new_cache(model, batch, window=WINDOW):
    return StepCache(model.config, batch, window, model.embed_state.weight)


@torch.no_grad()
def by_steps(model, cache, observation, action, return_to_go, first=None):
    """(B, T, D) from a call a step; ``first`` (B, T) is True where an episode begins."""
    out, before = [], torch.zeros_like(action[:, 0])
    for t in range(observation.shape[1]):
        if first is not None:
            cache.reset(first[:, t])
        out.append(model.step(observation[:, t], before, return_to_go[:, t], cache))
        before = action[:, t]
    return torch.stack(out, 1)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_steps_are_those_of_one_pass_over_an_episode_much_longer_than_the_window(config):
    model = make_model(**config)
    episodes = make_episodes(3, 40)
    with torch.no_grad():
        at_once = model(*episodes)
    torch.testing.assert_close(by_steps(model, new_cache(model, 3), *episodes), at_once, rtol=0, atol=1e-12)
    # and the window matters: without one the pass says something else
    model.config.attention_window = None
    with torch.no_grad():
        assert (model(*episodes)[:, WINDOW + 1 :] - at_once[:, WINDOW + 1 :]).abs().min() > 1e-9


@pytest.mark.parametrize("window", [1, 2, 7, 39, 40, 100])
def test_windows_of_any_length(window):
    model = make_model(attention_window=window)
    episodes = make_episodes(2, 40)
    with torch.no_grad():
        at_once = model(*episodes)
    got = by_steps(model, new_cache(model, 2, window), *episodes)
    torch.testing.assert_close(got, at_once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [{}, {"placement": "pre"}, {"stepra": False}], ids=str)
def test_without_a_window_steps_are_exact_for_as_many_steps_as_the_cache_has(config):
    model = make_model(attention_window=None, **config)
    episodes = make_episodes(2, 6)
    with torch.no_grad():
        at_once = model(*episodes)
    torch.testing.assert_close(
        by_steps(model, new_cache(model, 2, 6), *episodes), at_once, rtol=0, atol=1e-12
    )
    # one step fewer is too few: what is lost is seen by the last step alone
    short = by_steps(model, new_cache(model, 2, 5), *episodes)
    torch.testing.assert_close(short[:, :5], at_once[:, :5], rtol=0, atol=1e-12)
    assert (short[:, 5] - at_once[:, 5]).abs().max() > 1e-6


def test_in_float32_to_its_rounding():
    model = make_model(torch.float32)
    episodes = make_episodes(4, 60, torch.float32)
    with torch.no_grad():
        at_once = model(*episodes)
    got = by_steps(model, new_cache(model, 4), *episodes)
    torch.testing.assert_close(got, at_once, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("one_hot", [False, True])
def test_discrete_actions(one_hot):
    model = make_model(discrete=True)
    observation, action, return_to_go = make_episodes(2, 20, discrete=True)
    with torch.no_grad():
        at_once = model(observation, action, return_to_go)
    if one_hot:
        action = torch.nn.functional.one_hot(action, ACTIONS).double()
    got = by_steps(model, new_cache(model, 2), observation, action, return_to_go)
    torch.testing.assert_close(got, at_once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [{}, {"placement": "pre"}, {"seqra": False}, {"stepra": False}], ids=str)
def test_environments_begin_episodes_at_different_times(config):
    model = make_model(**config)
    batch, steps = 5, 40
    episodes = make_episodes(batch, steps)
    first = torch.rand(batch, steps, generator=torch.Generator().manual_seed(2)) < 0.12
    first[0] = False  # never
    first[1, ::2] = True  # episodes shorter than the window
    got = by_steps(model, new_cache(model, batch), *episodes, first)
    for row in range(batch):
        starts = [0, *first[row].nonzero().flatten().tolist(), steps]
        for start, end in itertools.pairwise(starts):
            if start < end:
                with torch.no_grad():
                    alone = model(*(x[row : row + 1, start:end] for x in episodes))
                torch.testing.assert_close(got[row, start:end], alone[0], rtol=0, atol=1e-12)


def test_after_a_reset_nothing_is_left_of_what_the_cache_held():
    model = make_model()
    cache = new_cache(model, 2)
    by_steps(model, cache, *make_episodes(2, 9))
    for held in (cache.keys, cache.values, cache.return_keys, cache.return_values):
        held.fill_(1e6)
    cache.before = [
        type(c)(*(x and [1e6 * y for y in x] for x in (c.scales, c.shifts)), None, None) for c in cache.before
    ]
    cache.reset(torch.tensor([True, True]))
    episodes = make_episodes(2, 12, seed=3)
    got = by_steps(model, cache, *episodes)
    torch.testing.assert_close(got, by_steps(model, new_cache(model, 2), *episodes), rtol=0, atol=1e-12)


def test_environments_do_not_see_each_other():
    model = make_model()
    episodes, others = make_episodes(3, 15), make_episodes(3, 15, seed=4)
    got = by_steps(model, new_cache(model, 3), *episodes)
    for mine, other in zip(episodes, others, strict=True):
        mine[1] = other[1]
    changed = by_steps(model, new_cache(model, 3), *episodes)
    assert changed[[0, 2]].equal(got[[0, 2]])
    assert (changed[1] - got[1]).abs().min(-1).values.min() > 0


def test_the_action_before_the_first_step_is_not_looked_at():
    model = make_model()
    observation, action, return_to_go = make_episodes(2, 1)
    outs = []
    for before in (torch.zeros(2, ACTIONS), torch.full((2, ACTIONS), 1e6)):
        cache = new_cache(model, 2)
        for _ in range(2 * WINDOW):  # the token has a slot, which must not be seen later either
            outs.append(model.step(observation[:, 0], before.double(), return_to_go[:, 0], cache))
            before = action[:, 0]
    for one, other in zip(outs[: 2 * WINDOW], outs[2 * WINDOW :], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_no_token_sees_nothing_at_all():
    """An attention over nothing may be NaN, and spoil what is masked too."""
    cache = new_cache(make_model(), 2)
    for _ in range(2 * WINDOW):
        cache.advance()
        assert all(mask.any(-1).all() for mask in cache.masks())


def test_a_return_that_changes_does_not_reach_the_steps_before():
    model = make_model()
    observation, action, return_to_go = make_episodes(2, 12)
    got = by_steps(model, new_cache(model, 2), observation, action, return_to_go)
    return_to_go[:, 6] += 1
    changed = by_steps(model, new_cache(model, 2), observation, action, return_to_go)
    assert changed[:, :6].equal(got[:, :6])
    assert (changed[:, 6:] - got[:, 6:]).abs().amax(-1).min() > 1e-9


def test_under_autocast_a_step_is_close_to_float32():
    model = make_model(torch.float32)
    episodes = make_episodes(2, 12, torch.float32)
    at_once = by_steps(model, new_cache(model, 2), *episodes)
    with torch.autocast("cpu", torch.bfloat16):
        rough = by_steps(model, new_cache(model, 2), *episodes)
    torch.testing.assert_close(rough.float(), at_once, rtol=0.1, atol=0.15)
