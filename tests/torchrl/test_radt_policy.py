"""Acting step by step: caches change nothing, episodes and environments stay apart, any keys and shapes."""

import itertools
import warnings

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, TensorDictModule, set_interaction_type
from torch.distributions import Categorical
from torchrl.envs import Compose, InitTracker, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.libs.gym import GymEnv
from torchrl.modules import DTActor, OneHotCategorical, ProbabilisticActor, TanhDelta, TanhNormal

from extensions.torchrl import MultiTargetReturn, OnlineRADTActor, RADTActor, RADTPolicy

STATES, ACTIONS, CONTEXT = 3, 5, 4
THREE = ["observation", "action", "return_to_go"]
FIVE = [*THREE, "timestep", "mask"]
KINDS = ("plain", "tanh delta", "tanh normal", "indices", "one-hot")
CACHES = ("none", "exact", "sliding")


def config_of(cache="sliding", **config):
    window = CONTEXT if cache == "sliding" else None
    return {"n_embd": 8, "n_layer": 2, "n_head": 2, "attention_window": window} | config


def scramble(net, dtype=torch.float64):
    for name, parameter in net.named_parameters():
        if name != "action_layer.bias":  # which would choose among discrete actions alone
            torch.nn.init.normal_(parameter, std=0.4)
    return net.to(dtype).eval()


def make_actor(kind="plain", cache="none", in_keys=FIVE, action_key="action", actions=ACTIONS, **config):
    """An actor for every way to write an action, with no parameter at 0."""
    torch.manual_seed(0)
    config = config_of(cache, **config)
    if kind == "tanh normal":
        net = OnlineRADTActor(STATES, actions, config)
        outs, distribution, kwargs = ["loc", "scale"], TanhNormal, {"low": -1.0, "high": 1.0}
    else:
        net = RADTActor(STATES, actions, config, discrete=kind in ("indices", "one-hot"))
        outs, distribution, kwargs = {
            "plain": ([action_key], None, {}),
            "tanh delta": (["param"], TanhDelta, {"low": -1.0, "high": 1.0}),
            "indices": (["logits"], Categorical, {}),
            "one-hot": (["logits"], OneHotCategorical, {}),
        }[kind]
    module = TensorDictModule(scramble(net), in_keys, outs)
    if distribution is None:
        return module
    return ProbabilisticActor(
        module,
        in_keys=outs,
        out_keys=[action_key],
        distribution_class=distribution,
        distribution_kwargs=kwargs,
        default_interaction_type=InteractionType.DETERMINISTIC,
    )


def make_script(steps, batch, resets=True, seed=1):
    """What environments would give: observations, returns to go and where episodes begin, (steps, *batch)."""
    torch.manual_seed(seed)
    first = torch.rand(steps, *batch, 1) < 0.15
    first[0] = True
    first[1:] &= resets
    return TensorDict(
        {
            "observation": torch.randn(steps, *batch, STATES, dtype=torch.float64),
            "return_to_go": torch.randn(steps, *batch, 1, dtype=torch.float64),
            "is_init": first,
        },
        [steps, *batch],
    )


def play(policy, script):
    """The policy's actions, (steps, *batch, ..)."""
    return torch.stack([policy(td.clone())["action"] for td in script])


def by_hand(actor, script, actions, t, row):
    """The action of one environment's step, from its window made by hand, without padding."""
    begin = max(s for s in range(t + 1) if script["is_init"][s, row])
    start = max(begin, t + 1 - CONTEXT)
    last = torch.zeros_like(actions[:1, row])  # whatever it is, nobody looks at it
    window = TensorDict(
        {
            "observation": script["observation"][start : t + 1, row],
            "action": torch.cat((actions[start:t, row], last)),
            "return_to_go": script["return_to_go"][start : t + 1, row],
            "timestep": torch.arange(start, t + 1) - begin,
            "mask": torch.ones(t + 1 - start, dtype=torch.bool),
        },
        [t + 1 - start],
    ).unsqueeze(0)
    return actor(window)["action"][0, -1]


@pytest.mark.parametrize("cache", ["none", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_those_of_windows_made_by_hand(kind, cache):
    actor = make_actor(kind)
    script = make_script(12, [2])
    actions = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    assert len(actions.unique()) > 1
    for t in range(12):
        for row in range(2):
            expected = by_hand(actor, script, actions, t, row)
            torch.testing.assert_close(actions[t, row], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sliding_cache_acts_as_one_pass_over_each_whole_episode(kind, resets):
    actor = make_actor(kind, "sliding")
    script = make_script(24, [3], resets)
    actions = play(RADTPolicy(actor, CONTEXT, cache="sliding"), script)
    for row in range(3):
        starts = [*script["is_init"][:, row, 0].nonzero().flatten().tolist(), 24]
        for start, end in itertools.pairwise(starts):
            episode = TensorDict(
                {
                    "observation": script["observation"][start:end, row],
                    "action": actions[start:end, row],
                    "return_to_go": script["return_to_go"][start:end, row],
                    "timestep": torch.arange(end - start),
                    "mask": torch.ones(end - start, dtype=torch.bool),
                },
                [end - start],
            ).unsqueeze(0)
            expected = actor(episode)["action"][0]
            torch.testing.assert_close(actions[start:end, row], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, CONTEXT, 9])
def test_exact_is_none_for_actors_with_any_window(window):
    actor, script = make_actor(attention_window=window), make_script(12, [2])
    exact, none = (play(RADTPolicy(actor, CONTEXT, cache=cache), script) for cache in ("exact", "none"))
    torch.testing.assert_close(exact, none, rtol=0, atol=1e-12)


def test_exact_takes_the_cache_until_a_window_slides_and_again_when_all_begin_anew(monkeypatch):
    actor = make_actor()
    script = make_script(3 * CONTEXT, [2], resets=False)
    script["is_init"][2 * CONTEXT] = True
    calls = []
    monkeypatch.setattr(
        actor.module, "step", lambda *args, step=actor.module.step: calls.append(0) or step(*args)
    )
    policy = RADTPolicy(actor, CONTEXT, cache="exact")
    counts = []
    for td in script:
        policy(td)
        counts.append(len(calls))
    ahead, behind = list(range(1, CONTEXT + 1)), [CONTEXT] * CONTEXT
    assert counts == [*ahead, *behind, *(CONTEXT + n for n in ahead)]


@pytest.mark.parametrize("cache", CACHES)
def test_in_float32_caches_agree_to_rounding(cache):
    actor = make_actor(cache=cache).float()
    script = make_script(30, [4])
    script = script.float().set("is_init", script["is_init"])
    single = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    double = play(RADTPolicy(make_actor(cache=cache), CONTEXT, cache=cache), make_script(30, [4]))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)  # actions feed back


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", ["plain", "indices"])
@pytest.mark.parametrize("batch", [[], [1], [4], [2, 3]], ids=str)
def test_batches_of_any_shape(batch, kind, cache):
    actor = make_actor(kind, cache)
    count = max(1, torch.Size(batch).numel())
    flat = make_script(CONTEXT + 2, [count])
    actions = play(RADTPolicy(actor, CONTEXT, cache=cache), flat)
    features = [] if kind == "indices" else [ACTIONS]
    shaped = play(RADTPolicy(actor, CONTEXT, cache=cache), flat.reshape(len(flat), *batch))
    assert shaped.shape == (len(flat), *batch, *features)
    torch.testing.assert_close(shaped.reshape(actions.shape), actions, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cache", CACHES)
def test_many_targets_at_once_are_each_of_them_alone(cache):
    actor = make_actor(cache=cache)
    script = make_script(15, [5])
    actions = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    for row in range(5):
        alone = play(RADTPolicy(actor, CONTEXT, cache=cache), script[:, row : row + 1])
        torch.testing.assert_close(actions[:, row : row + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cache", CACHES)
def test_environments_do_not_see_each_other(cache):
    actor, script = make_actor(cache=cache), make_script(15, [3])
    actions = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    other = make_script(15, [3], seed=2)
    other["is_init"] = script["is_init"]  # with a cache that is "exact" all count for when to drop it
    script[:, 1] = other[:, 1]
    changed = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    assert changed[:, [0, 2]].equal(actions[:, [0, 2]])
    assert not changed[:, 1].equal(actions[:, 1])


@pytest.mark.parametrize("cache", CACHES)
def test_another_target_in_mid_episode_changes_what_comes_after_it_alone(cache):
    actor, script = make_actor(cache=cache), make_script(12, [2], resets=False)
    actions = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    script["return_to_go"][5:, 0] += 1
    changed = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    assert changed[:5].equal(actions[:5])
    assert changed[:, 1].equal(actions[:, 1])
    assert (changed[5:, 0] - actions[5:, 0]).abs().amax(-1).min() > 1e-9


@pytest.mark.parametrize("cache", CACHES)
def test_reset_forgets_everything(cache):
    script = make_script(9, [2])
    policy = RADTPolicy(make_actor(cache=cache), CONTEXT, cache=cache)
    once = play(policy, script)
    policy.reset()
    bare = RADTPolicy(policy.actor, CONTEXT, cache=cache, init_key=None)
    assert play(bare, script.exclude("is_init")[:1]).equal(once[:1])
    policy.reset()
    assert play(policy, script).equal(once)


@pytest.mark.parametrize("shape", [(2,), (2, 1)], ids=str)
@pytest.mark.parametrize("cache", CACHES)
def test_is_init_with_and_without_a_last_dimension(cache, shape):
    script = make_script(9, [2])
    policy = RADTPolicy(make_actor(cache=cache), CONTEXT, cache=cache)
    once = play(policy, script)
    assert play(policy, script.set("is_init", script["is_init"].reshape(9, *shape))).equal(once)


@pytest.mark.parametrize("cache", CACHES)
def test_exploration_is_the_callers_choice(cache):
    policy = RADTPolicy(make_actor("tanh normal", cache), CONTEXT, cache=cache)
    script = make_script(CONTEXT + 3, [2], resets=False)

    def act(kind, seed):
        policy.reset()
        torch.manual_seed(seed)
        with set_interaction_type(kind):
            return play(policy, script)

    mode = InteractionType.DETERMINISTIC
    assert act(mode, 0).equal(act(mode, 1))
    assert act(InteractionType.RANDOM, 0).equal(act(InteractionType.RANDOM, 0))
    drawn = [act(InteractionType.RANDOM, seed) for seed in (0, 1)]
    assert (drawn[0] != drawn[1]).all()
    assert (drawn[0] != act(mode, 0)).all()


def test_drawn_actions_are_remembered_as_drawn():
    """What follows a random action depends on it, from a cache as from a window."""
    actor = make_actor("tanh normal")
    script = make_script(CONTEXT, [2], resets=False)
    for cache in ("none", "exact"):
        policy = RADTPolicy(actor, CONTEXT, cache=cache)
        torch.manual_seed(3)
        with set_interaction_type(InteractionType.RANDOM):
            drawn = play(policy, script[:-1])
        last = policy(script[-1].clone())["action"]
        expected = by_hand(actor, script, torch.cat((drawn, last[None])), CONTEXT - 1, 1)
        torch.testing.assert_close(last[1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cache", CACHES)
def test_nested_keys_of_the_environment_and_of_the_actor(cache):
    names = [("agents", "observation"), ("agents", "action_cat"), ("agents", "return_to_go")]
    plain, script = make_actor("tanh delta", cache), make_script(9, [2])
    expected = play(RADTPolicy(plain, CONTEXT, cache=cache), script)
    actor = make_actor("tanh delta", cache, [*names, "timestep", "mask"], ("agents", "action"))
    policy = RADTPolicy(
        actor,
        CONTEXT,
        cache=cache,
        observation_key=("agents", "observation"),
        action_key=("agents", "action"),
        return_to_go_key=("agents", "return"),
        init_key=("agents", "began"),
    )
    assert policy.in_keys == [("agents", "observation"), ("agents", "return")]
    assert policy.out_keys == [("agents", "action")]
    for td, action in zip(script, expected, strict=True):
        nested = TensorDict({}, [2])
        for ours, name in (("observation", "observation"), ("return", "return_to_go"), ("began", "is_init")):
            nested["agents", ours] = td[name]
        assert policy(nested)["agents", "action"].equal(action)
        assert set(nested["agents"].keys()) == {"observation", "return", "began", "action"}


def test_nested_outputs_of_the_actor():
    for cache in CACHES:
        module = TensorDictModule(
            make_actor("tanh normal", cache).module[0].module, FIVE, [("head", "loc"), ("head", "scale")]
        )
        actor = ProbabilisticActor(
            module,
            in_keys={"loc": ("head", "loc"), "scale": ("head", "scale")},
            distribution_class=TanhNormal,
            default_interaction_type=InteractionType.DETERMINISTIC,
        )
        script = make_script(6, [2])
        expected = play(RADTPolicy(make_actor("tanh normal", cache), CONTEXT, cache=cache), script)
        torch.testing.assert_close(play(RADTPolicy(actor, CONTEXT, cache=cache), script), expected)


def test_torchrls_actor_acts_from_windows_too():
    torch.manual_seed(0)
    config = DTActor.default_config()
    config.n_embd, config.n_head, config.n_layer, config.n_inner = 8, 2, 2, 16
    actor = TensorDictModule(DTActor(STATES, ACTIONS, config).double().eval(), THREE, ["action"])
    script = make_script(9, [2], resets=False)
    actions = play(RADTPolicy(actor, CONTEXT), script)
    for t in range(9):  # windows are not padded while episodes are shorter, as in by_hand
        expected = by_hand(actor, script, actions, t, 1)
        torch.testing.assert_close(actions[t, 1], expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="is for a RADTActor; for another use cache='none'"):
        RADTPolicy(actor, CONTEXT, cache="exact")


def pendulum(count, max_steps):
    envs = SerialEnv(count, lambda: GymEnv("Pendulum-v1"))
    env = TransformedEnv(envs, Compose(StepCounter(max_steps), InitTracker()))
    env.set_seed(0)
    return env


@pytest.mark.parametrize("cache", CACHES)
def test_a_rollout_resets_by_itself(cache):
    actor = make_actor("tanh delta", cache, actions=1, max_ep_len=6, return_scale=100.0).float()
    policy = RADTPolicy(actor, CONTEXT, cache=cache)
    env = pendulum(3, max_steps=6).append_transform(MultiTargetReturn([-90.0, -50.0, -10.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rollout = env.rollout(20, policy, break_when_any_done=False)
    assert rollout["next", "done"].sum() == 3 * 3
    assert rollout["is_init"].squeeze(-1)[0].nonzero().flatten().tolist() == [0, 6, 12, 18]
    assert rollout["return_to_go"][:, ::6, 0].tolist() == [[target] * 4 for target in (-90, -50, -10)]
    script = rollout.select("observation", "return_to_go", "is_init").transpose(0, 1)
    actions = rollout["action"].transpose(0, 1)
    again = RADTPolicy(actor, CONTEXT, cache=cache)
    assert play(again, script).equal(actions)
    if cache != "sliding":
        for t in range(20):
            torch.testing.assert_close(
                actions[t, 2], by_hand(actor, script, actions, t, 2), rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("cache", CACHES)
def test_a_warning_past_the_longest_episode_once(cache):
    policy = RADTPolicy(make_actor(cache=cache, max_ep_len=5), CONTEXT, cache=cache)
    script = make_script(5, [2], resets=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(policy, script)
    goes_on = script.clone()
    goes_on["is_init"][:] = False
    with pytest.warns(UserWarning, match=r"An episode has 6 steps, .* max_ep_len=5") as caught:
        play(policy, goes_on)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            play(policy, goes_on)
    assert len([w for w in caught if w.category is UserWarning]) == 1


@pytest.mark.parametrize("cache", CACHES)
def test_another_number_of_environments_only_when_all_episodes_begin(cache):
    policy = RADTPolicy(make_actor(cache=cache), CONTEXT, cache=cache)
    play(policy, make_script(3, [2]))
    with pytest.raises(ValueError, match=r"3 environments, but 2 at the step before; call reset\(\)"):
        play(policy, make_script(3, [3])[1:].set("is_init", torch.tensor([[[True], [False], [True]]] * 2)))
    with pytest.raises(ValueError, match="call reset"):
        play(policy, make_script(3, [3]).exclude("is_init"))
    script = make_script(3, [3])
    fresh = play(RADTPolicy(make_actor(cache=cache), CONTEXT, cache=cache), script)
    assert play(policy, script).equal(fresh)


@pytest.mark.parametrize("cache", CACHES)
def test_nan_ends_with_its_episode(cache):
    actor, script = make_actor(cache=cache), make_script(12, [2], resets=False)
    script["is_init"][5, 0] = True
    actions = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    script["observation"][3, 0] = torch.nan
    broken = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    assert broken[3:5, 0].isnan().all()
    assert broken[5:].equal(actions[5:])
    assert broken[:, 1].equal(actions[:, 1])


@pytest.mark.parametrize("cache", CACHES)
def test_what_an_environment_lacks_is_said_at_its_first_step(cache):
    policy, step = RADTPolicy(make_actor(cache=cache), CONTEXT, cache=cache), make_script(1, [2])[0]
    with pytest.raises(ValueError, match=r"no 'return_to_go': .*MultiTargetReturn"):
        policy(step.exclude("return_to_go"))
    with pytest.raises(ValueError, match=r"no 'is_init', .*InitTracker"):
        policy(step.exclude("is_init"))
    with pytest.raises(ValueError, match="no 'observation'"):
        policy(step.exclude("observation"))
    with pytest.raises(ValueError, match=f"of {STATES} features, these have {STATES + 1}"):
        policy(step.set("observation", torch.zeros(2, STATES + 1)))


@pytest.mark.parametrize("cache", CACHES)
def test_observations_of_another_float_are_taken(cache):
    actor, step = make_actor(cache=cache), make_script(1, [2])[0]
    policy = RADTPolicy(actor.float(), CONTEXT, cache=cache)
    assert policy(step)["action"].dtype == torch.float32


def test_what_does_not_fit_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="context must be at least 1, got 0"):
        RADTPolicy(make_actor(), 0)
    with pytest.raises(ValueError, match="context=4 is 12 tokens, more than the actor's n_positions=11"):
        RADTPolicy(make_actor(n_positions=11), CONTEXT)
    with pytest.raises(ValueError, match="none, exact, sliding; got 'ring'"):
        RADTPolicy(make_actor(), CONTEXT, cache="ring")
    with pytest.raises(ValueError, match="in-keys mask, timestep too"):
        RADTPolicy(make_actor(in_keys=THREE), CONTEXT, cache="exact")
    with pytest.raises(ValueError, match=r"attention_window=4, its context; this one has None"):
        RADTPolicy(make_actor(), CONTEXT, cache="sliding")
    with pytest.raises(ValueError, match=r"attention_window=5, its context; this one has 4"):
        RADTPolicy(make_actor(cache="sliding"), CONTEXT + 1, cache="sliding")
    with pytest.raises(ValueError, match="'three_streams' has no cache; use cache='none'"):
        RADTPolicy(make_actor(architecture="three_streams"), CONTEXT, cache="exact")
    with pytest.raises(ValueError, match="wrap the actor in a TensorDictModule"):
        RADTPolicy(RADTActor(STATES, ACTIONS), CONTEXT)
    with pytest.raises(ValueError, match="must be a RADTActor or DTActor"):
        RADTPolicy(TensorDictModule(torch.nn.Linear(3, 2), ["observation"], ["action"]), CONTEXT)
    with pytest.raises(ValueError, match="in-keys must be observation, action and return-to-go"):
        RADTPolicy(make_actor(in_keys=[*THREE, "time", "mask"]), CONTEXT)
    with pytest.raises(ValueError, match=r"writes \['logits', 'action'\], not 'choice'"):
        RADTPolicy(make_actor("indices"), CONTEXT, action_key="choice")


def test_without_a_mask_windows_are_not_padded_while_episodes_are_short():
    seen = []

    class Watching(RADTActor):
        def forward(self, observation, action, return_to_go):
            seen.append(observation.shape[1])
            return super().forward(observation, action, return_to_go)

    actor = TensorDictModule(Watching(STATES, ACTIONS, config_of("none")).double(), THREE, ["action"])
    play(RADTPolicy(actor, CONTEXT), make_script(CONTEXT + 2, [2], resets=False))
    assert seen == [1, 2, 3, 4, 4, 4]


def test_padding_is_blank_after_an_episode_ended_for_an_actor_that_sees_it():
    """Without a mask padding is attended to, as in TorchRL's; of an earlier episode there must be nothing."""
    actor, script = make_actor(in_keys=THREE), make_script(CONTEXT + 3, [2], resets=False)
    script["is_init"][CONTEXT + 1, 1] = True
    actions = play(RADTPolicy(actor, CONTEXT), script)

    def window(values):
        """Two steps of the new episode behind zeros."""
        return torch.cat((torch.zeros_like(values[:2]), values[-2:]))[None]

    done = torch.stack((actions[-2, 1], torch.zeros_like(actions[0, 1])))
    inputs = (script["observation"][:, 1], done, script["return_to_go"][:, 1])
    expected = actor.module(*map(window, inputs))[0, -1]
    torch.testing.assert_close(actions[-1, 1], expected, rtol=0, atol=1e-12)


def test_no_gradients_and_no_change_of_mode():
    actor = make_actor().train()
    policy = RADTPolicy(actor, CONTEXT)
    out = policy(make_script(1, [2])[0])
    assert not out["action"].requires_grad
    assert actor.training
    assert list(policy.state_dict()) == [f"actor.{name}" for name in actor.state_dict()]


@pytest.mark.parametrize("cache", CACHES)
def test_under_autocast_actions_are_close(cache):
    actor = make_actor(cache=cache).float()
    script = (
        make_script(CONTEXT + 4, [2], resets=False)
        .float()
        .set("is_init", make_script(CONTEXT + 4, [2], resets=False)["is_init"])
    )
    fine = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    with torch.autocast("cpu", torch.bfloat16):
        rough = play(RADTPolicy(actor, CONTEXT, cache=cache), script)
    torch.testing.assert_close(rough.float(), fine, rtol=0.15, atol=0.15)
