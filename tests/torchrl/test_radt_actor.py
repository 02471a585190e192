"""In the place of TorchRL's Decision Transformer: what is asked of DTActor and its wrapper, asked of ours."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded
from torchrl.modules import (
    DecisionTransformerInferenceWrapper,
    DTActor,
    OnlineDTActor,
    ProbabilisticActor,
    TanhDelta,
    TanhNormal,
)
from torchrl.modules.models.decision_transformer import DecisionTransformer

from extensions.torchrl import (
    OnlineRADTActor,
    OnlineRADTLoss,
    RADTActor,
    RADTInferenceWrapper,
    RADTLoss,
    RADTransformer,
)

S, A, T = 3, 4, 5
SMALL = {"n_layer": 2, "n_embd": 16, "n_positions": 16, "n_inner": 16, "n_head": 2}
CONFIGS = {
    "ours": RADTransformer.DTConfig(**SMALL),
    "TorchRL's": DecisionTransformer.DTConfig(**SMALL),
    "a dict": SMALL,
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_batch = pytest.mark.parametrize("lead", [(), (3,), (3, 4)])


def window(lead, steps=T):
    return [torch.randn(*lead, steps, n) for n in (S, A, 1)]


@every_config
@every_batch
def test_the_transformer_gives_features_of_each_step(lead, config):
    assert RADTransformer(S, A, config)(*window(lead)).shape == (*lead, T, 16)


@every_config
@every_batch
def test_the_actor_gives_an_action_for_each_step(lead, config):
    assert RADTActor(S, A, transformer_config=config)(*window(lead)).shape == (*lead, T, A)


@every_config
@every_batch
def test_the_online_actor_gives_a_mean_and_a_bounded_deviation(lead, config):
    actor = OnlineRADTActor(S, A, transformer_config=config)
    mean, std = actor(*window(lead))
    assert mean.shape == std.shape == (*lead, T, A)
    assert bool((std.log() > actor.log_std_min).all())
    assert bool((std.log() < actor.log_std_max).all())


@every_batch
def test_discrete_actors_give_logits(lead):
    observation, _, return_to_go = window(lead)
    actor = RADTActor(S, A, SMALL, discrete=True)
    for action in (torch.randint(-1, A, (*lead, T)), torch.zeros(*lead, T, A)):
        assert actor(observation, action, return_to_go).shape == (*lead, T, A)


@pytest.mark.parametrize(("ours", "theirs"), [(RADTActor, DTActor), (OnlineRADTActor, OnlineDTActor)])
def test_arguments_and_outputs_are_those_of_torchrls_actor(ours, theirs):
    config = theirs.default_config()
    config.n_embd, config.n_inner, config.n_layer = 16, 16, 1
    call = {"state_dim": S, "action_dim": A, "transformer_config": config, "device": "cpu"}
    outputs = [actor(**call)(*window((2,))) for actor in (ours, theirs)]
    if isinstance(outputs[0], torch.Tensor):
        outputs = [(x,) for x in outputs]
    for got, expected in zip(*outputs, strict=True):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert {name for name, _ in ours(**call).named_children()} == {
        name for name, _ in theirs(**call).named_children()
    }
    changed = ours.default_config()
    changed.n_embd = 32
    assert ours(S, A, changed).transformer.hidden_size == 32


def probabilistic(online, action_key="action", in_keys=(), spec=None):
    torch.manual_seed(0)
    kind = OnlineRADTActor if online else RADTActor
    out_keys = ["loc", "scale"] if online else ["param"]
    in_keys = ["observation", action_key, "return_to_go", *in_keys]
    return ProbabilisticActor(
        TensorDictModule(kind(S, A, SMALL | {"n_positions": 60}).eval(), in_keys, out_keys),
        in_keys=out_keys,
        out_keys=[action_key],
        spec=spec,
        distribution_class=TanhNormal if online else TanhDelta,
        distribution_kwargs={"low": -1.0, "high": 1.0},
    )


@pytest.mark.parametrize("wrapper", [DecisionTransformerInferenceWrapper, RADTInferenceWrapper])
@pytest.mark.parametrize("online", [False, True])
def test_inference_wrappers(online, wrapper):
    """TorchRL's wrapper goes around our actors, and ours does what it does, under nested keys too."""
    action_key, steps = ("nested", "action"), 20
    observation, action, return_to_go = window((1,), steps)
    data = TensorDict({"observation": observation, action_key: action, "return_to_go": return_to_go}, [1])
    actor = wrapper(probabilistic(online, action_key))
    with pytest.raises(ValueError, match="The value of out_action_key"):
        actor(data)
    actor.set_tensor_keys(action=action_key, out_action=action_key)
    result = actor(data)
    outputs = {"loc", "scale"} if online else {"param"}
    assert result[action_key].shape == (1, A)
    assert result["return_to_go"].shape == (1, 1)
    assert set(actor.out_keys) == {action_key, "observation", "return_to_go", *outputs}
    assert set(result.keys(True, True)) - set(data.keys(True, True)) == outputs


def test_torchrls_wrapper_gives_the_actors_own_action():
    """The last five steps, the past actions among them; what lies before is zero."""
    actor = probabilistic(online=False)
    observation, action, return_to_go = window((2,), 8)
    data = TensorDict({"observation": observation, "action": action, "return_to_go": return_to_go}, [2])
    got = DecisionTransformerInferenceWrapper(actor, inference_context=5)(data)["action"]
    past = torch.cat((action[:, 1:], torch.zeros(2, 1, A)), 1)
    seen = [torch.cat((torch.zeros_like(x[:, :3]), x[:, 3:]), 1) for x in (observation, past, return_to_go)]
    net = actor.module[0].module
    torch.testing.assert_close(got, torch.tanh(net(*seen)[:, -1]))


@pytest.mark.parametrize("kind", ["offline", "online", "discrete"])
def test_a_training_loop_as_torchrls_recipe_has_it(kind):
    """The actions to learn are a function of the return: the loss falls as it is found."""
    torch.manual_seed(0)
    observation, _, return_to_go = window((16,), 3)
    if kind == "discrete":
        action = (return_to_go.squeeze(-1) > 0).long()
        module = TensorDictModule(
            RADTActor(S, 2, SMALL, discrete=True), ["observation", "action", "return_to_go"], ["logits"]
        )
        actor = ProbabilisticActor(
            module, in_keys=["logits"], distribution_class=torch.distributions.Categorical
        )
        loss_module = RADTLoss(actor, loss_function="cross_entropy")
    else:
        action = (return_to_go / 2).clamp(-0.9, 0.9).expand(-1, -1, A).clone()
        spec = Bounded(-torch.ones(A), torch.ones(A))
        actor = probabilistic(kind == "online", spec=spec)
        loss_module = OnlineRADTLoss(actor) if kind == "online" else RADTLoss(actor)
    data = TensorDict({"observation": observation, "action": action, "return_to_go": return_to_go}, [16])
    optimizer = torch.optim.AdamW(loss_module.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        out = loss_module(data)
        loss = sum(out[key] for key in loss_module.out_keys if key.startswith("loss"))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(loss_module.parameters(), 0.25)
        optimizer.step()
        losses.append(out[loss_module.out_keys[0]].item())
    if kind == "online":
        assert losses[-1] < losses[0] - 1
    else:
        assert losses[-1] < 0.2 * losses[0]
