"""RADTInferenceWrapper: what TorchRL's does where that is right, and the context alone is looked at."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.modules import DecisionTransformerInferenceWrapper, ProbabilisticActor, TanhDelta

from extensions.torchrl import RADTActor, RADTInferenceWrapper, RADTPolicy

STATES, ACTIONS, STEPS = 3, 2, 8
THREE = ["observation", "action", "return_to_go"]
FIVE = [*THREE, "timestep", "mask"]


def make_net(discrete=False):
    torch.manual_seed(0)
    net = RADTActor(STATES, ACTIONS, {"n_embd": 8, "n_layer": 2, "n_head": 2}, discrete=discrete)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return net.double().eval()


def make_actor(in_keys, out_key="action"):
    module = TensorDictModule(make_net(), in_keys, ["param"])
    limits = {"low": -1.0, "high": 1.0}
    return ProbabilisticActor(
        module,
        in_keys=["param"],
        out_keys=[out_key],
        distribution_class=TanhDelta,
        distribution_kwargs=limits,
    )


def make_windows(batch=(4,), batch_dims=None, seed=1):
    """As CatFrames makes them: an action stands beside the observation that came of it."""
    torch.manual_seed(seed)
    return TensorDict(
        {
            "observation": torch.randn(*batch, STEPS, STATES).double(),
            "action": torch.rand(*batch, STEPS, ACTIONS).double() * 2 - 1,
            "return_to_go": torch.randn(*batch, STEPS, 1).double(),
            "timestep": torch.arange(20, 20 + STEPS).expand(*batch, STEPS),
        },
        batch if batch_dims is None else batch_dims,
    )


def on_the_context_alone(windows, context, real=None):
    """The action that the actor gives on a window of just those steps."""
    start = STEPS - context
    actions = torch.cat((windows["action"][..., 1:, :], torch.zeros_like(windows["action"][..., :1, :])), -2)
    window = [x[..., start:, :] for x in (windows["observation"], actions, windows["return_to_go"])] + [
        windows["timestep"][..., start:],
        None if real is None else real[..., start:],
    ]
    return torch.tanh(make_net()(*window))[..., -1, :]


@pytest.mark.parametrize("time_in_batch", [False, True])
@pytest.mark.parametrize("context", [2, 3, STEPS - 1, STEPS, STEPS + 1, STEPS + 5])
def test_without_a_mask_it_is_torchrls_wrapper(context, time_in_batch):
    actor = make_actor(THREE)
    windows = make_windows(batch_dims=[4, STEPS] if time_in_batch else None)
    before = windows.clone()
    ours, theirs = (
        kind(actor, inference_context=context)(windows)
        for kind in (RADTInferenceWrapper, DecisionTransformerInferenceWrapper)
    )
    assert ours.batch_size == theirs.batch_size == torch.Size([4])
    assert set(ours.keys()) == set(theirs.keys())
    for key in sorted(theirs.keys()):
        assert ours[key].equal(theirs[key]), key
    assert (windows == before).all()


@pytest.mark.parametrize("context", range(1, STEPS + 3))
def test_with_a_mask_the_context_is_all_that_counts(context):
    windows = make_windows()
    out = RADTInferenceWrapper(make_actor(FIVE), inference_context=context)(windows)
    expected = on_the_context_alone(windows, min(context, STEPS))
    torch.testing.assert_close(out["action"], expected, rtol=0, atol=1e-12)


def test_a_context_of_one_step_hides_all_past_actions_without_a_mask_too():
    """TorchRL's wrapper leaves all of them but one in sight."""
    wrapper = RADTInferenceWrapper(make_actor(THREE), inference_context=1)
    windows, others = make_windows(), make_windows(seed=2)
    others["observation"][:, -1] = windows["observation"][:, -1]
    others["return_to_go"][:, -1] = windows["return_to_go"][:, -1]
    assert wrapper(windows)["action"].equal(wrapper(others)["action"])
    theirs = DecisionTransformerInferenceWrapper(make_actor(THREE), inference_context=1)
    with_actions = windows.clone().set("action", others["action"])
    assert not theirs(windows)["action"].equal(theirs(with_actions)["action"])  # else ours may go


@pytest.mark.parametrize("last", [[], [1]], ids=["(B, T)", "(B, T, 1)"])
def test_a_mask_of_the_tensordict_counts_within_the_context(last):
    windows = make_windows()
    real = torch.ones(4, STEPS, dtype=torch.bool)
    real[1, :5], real[2, :-1] = False, False
    given = windows.clone().set("mask", real.reshape(4, STEPS, *last))
    out = RADTInferenceWrapper(make_actor(FIVE), inference_context=5)(given)
    expected = on_the_context_alone(windows, 5, real)
    torch.testing.assert_close(out["action"], expected, rtol=0, atol=1e-12)
    without = on_the_context_alone(windows, 5)
    assert ((out["action"] - without).abs().amax(-1) > 1e-9).tolist() == [False, True, True, False]
    assert given["mask"].equal(real.reshape(4, STEPS, *last))


def test_entries_of_the_result():
    windows = make_windows()
    out = RADTInferenceWrapper(make_actor(FIVE), inference_context=3)(windows)
    assert "mask" not in out  # nobody asked for it
    assert out["observation"].equal(windows["observation"])
    assert out["return_to_go"].equal(windows["return_to_go"][:, -1])
    assert out["action"].shape == (4, ACTIONS)
    given = windows.clone().set("mask", torch.ones(4, STEPS, dtype=torch.bool))
    assert "mask" in RADTInferenceWrapper(make_actor(FIVE), inference_context=3)(given)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)], ids=str)
def test_batches_of_any_shape(batch):
    windows = make_windows(batch)
    out = RADTInferenceWrapper(make_actor(FIVE), inference_context=4)(windows)
    expected = on_the_context_alone(windows, 4)
    assert out["action"].shape == (*batch, ACTIONS)
    torch.testing.assert_close(out["action"], expected, rtol=0, atol=1e-12)


def test_keys_are_set_as_in_torchrl():
    names = {"observation": "seen", "action": ("done", "before"), "return_to_go": ("goal", "left")}
    actor = make_actor([*names.values(), "timestep", "mask"], out_key="next_action")
    wrapper = RADTInferenceWrapper(actor, inference_context=3)
    wrapper.set_tensor_keys(**names, out_action="next_action")
    assert wrapper.in_keys == [*names.values(), "timestep"]
    windows = make_windows()
    renamed = windows.select("timestep")
    for key, name in names.items():
        renamed[name] = windows[key]
    out = wrapper(renamed)
    torch.testing.assert_close(out["next_action"], on_the_context_alone(windows, 3), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="must be within the actor output keys"):
        wrapper.set_tensor_keys(out_action="action")


@pytest.mark.parametrize("keys", [THREE, FIVE], ids=["three", "five"])
def test_dispatch(keys):
    wrapper = RADTInferenceWrapper(make_actor(keys), inference_context=3)
    windows = make_windows()
    out = wrapper(windows)
    by_name = wrapper(**{key: windows[key] for key in wrapper.in_keys})
    by_place = wrapper(*(windows[key] for key in wrapper.in_keys))
    assert len(by_name) == len(by_place) == len(wrapper.out_keys)
    for key, name, place in zip(wrapper.out_keys, by_name, by_place, strict=True):
        assert name.equal(out[key])
        assert place.equal(out[key])


def test_one_hot_actions_have_none_where_they_are_hidden():
    module = TensorDictModule(make_net(discrete=True), FIVE, ["action"])
    windows = make_windows()
    windows["action"] = torch.nn.functional.one_hot(windows["action"].argmax(-1), ACTIONS)
    out = RADTInferenceWrapper(module, inference_context=4)(windows)
    actions = torch.cat((windows["action"][:, 1:], torch.zeros(4, 1, ACTIONS)), 1)[:, -4:]
    short = (x[:, -4:] for x in (windows["observation"], windows["return_to_go"], windows["timestep"]))
    observation, return_to_go, timestep = short
    expected = make_net(discrete=True)(observation, actions, return_to_go, timestep)[:, -1]
    torch.testing.assert_close(out["action"], expected, rtol=0, atol=1e-12)
    windows["action"] = windows["action"].argmax(-1)
    with pytest.raises(ValueError, match="For actions as indices use RADTPolicy, or give them one-hot"):
        RADTInferenceWrapper(module, inference_context=4)(windows)


def test_policy_and_wrapper_act_alike():
    """RADTPolicy keeps the windows that an environment would have to give the wrapper."""
    actor, windows = make_actor(FIVE), make_windows()
    policy, actions = RADTPolicy(actor, context=5, init_key=None), []
    for t in range(STEPS):
        seen = TensorDict({key: windows[key][:, t] for key in ("observation", "return_to_go")}, [4])
        actions.append(policy(seen)["action"])
    windows["action"] = torch.stack([torch.zeros_like(actions[0]), *actions[:-1]], 1)
    windows["timestep"] = windows["timestep"] - 20
    out = RADTInferenceWrapper(actor, inference_context=5)(windows)
    torch.testing.assert_close(out["action"], actions[-1], rtol=0, atol=1e-12)
