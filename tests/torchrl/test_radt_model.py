"""What an action may depend on, and what a module of torch must be good for."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from extensions.torchrl import OnlineRADTActor, RADTActor, RADTransformer

B, T, S, A, D = 2, 6, 3, 2, 8
VARIANTS = {
    "the paper's": {},
    "no seqra": {"seqra": False},
    "no stepra": {"stepra": False},
    "no aligner": {"seqra": False, "stepra": False},
    "no gate": {"alpha_gate": False},
    "pre-norm": {"placement": "pre"},
    "pre-norm, no stepra": {"placement": "pre", "stepra": False},
    "norms without shift": {"norm": "layernorm_nobias", "stepra": False},
    "rmsnorm": {"norm": "rmsnorm"},
    "mlp of returns": {"return_embedding": "mlp"},
    "waves of returns": {"return_embedding": "fourier"},
    "one layer": {"n_layer": 1},
    "window of 3": {"attention_window": 3},
    "three streams": {"architecture": "three_streams"},
    "three streams, window of 3": {"architecture": "three_streams", "attention_window": 3},
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def make(kind=RADTransformer, discrete=None, dtype=torch.float64, **config):
    """Nothing is left at 0 or at the identity, so that every part counts."""
    torch.manual_seed(0)
    settings = {"n_embd": D, "n_layer": 2, "n_head": 2} | config
    kwargs = {} if discrete is None else {"discrete": discrete}
    module = kind(S, A, settings, **kwargs).to(dtype).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def make_inputs(*lead, steps=T, seed=1, dtype=torch.float64):
    """Observations, actions, returns-to-go and timesteps."""
    torch.manual_seed(seed)
    lead = lead or (B,)
    floats = (torch.randn(*lead, steps, n, dtype=dtype) for n in (S, A, 1))
    return (*floats, torch.randint(500, (*lead, 1)) + torch.arange(steps))


def reach(model, of, at):
    """For input number ``of``, the steps of it that the features of step ``at`` depend on."""
    inputs = list(make_inputs(1))
    inputs[of] = inputs[of].requires_grad_()
    features = model(*inputs)[0, at]
    weights = torch.randn(features.shape, dtype=features.dtype)
    (gradient,) = torch.autograd.grad((features * weights).sum(), inputs[of], allow_unused=True)
    return [] if gradient is None else gradient[0].abs().amax(-1).nonzero().flatten().tolist()


@every_variant
@pytest.mark.parametrize("at", range(T))
def test_an_action_depends_on_states_and_returns_up_to_it_and_on_actions_before_it(config, at):
    model = make(**config)
    layers, window = config.get("n_layer", 2), config.get("attention_window", T)
    first = max(0, at - layers * (window - 1))
    states = list(range(first, at + 1))
    if config.get("architecture") == "three_streams":
        actions = list(range(max(0, first - 1), at))  # the action of the step before stands at its step
    else:
        actions = list(range(first, at))
    assert reach(model, 0, at) == states
    assert reach(model, 1, at) == actions
    if not model.config.uses_returns:
        returns = []
    elif model.config.seqra or config.get("architecture") == "three_streams":
        returns = states
    else:  # StepRA's returns come with the tokens that they modulate
        returns = list(range(first, at + 1))
    assert reach(model, 2, at) == returns


@every_variant
def test_what_is_padded_does_not_matter(config):
    model = make(**config)
    inputs = make_inputs()
    mask = torch.arange(T) >= torch.tensor([[2], [4]])
    base = model(*inputs, mask)
    for other in (make_inputs(seed=2), [x * 100 for x in make_inputs(seed=3)], [x * 0 for x in inputs]):
        mixed = [
            torch.where(mask.reshape(B, T, *[1] * (x.ndim - 2)), x, y)
            for x, y in zip(inputs, other, strict=True)
        ]
        assert torch.equal(model(*mixed, mask)[mask], base[mask])


@every_variant
def test_what_is_real_does_matter(config):
    """The mask is the right way round: each earlier real step counts, within the window."""
    model = make(**config)
    observation, action, return_to_go, timestep = make_inputs()
    mask = torch.arange(T).expand(B, T) >= 3
    base = model(observation, action, return_to_go, timestep, mask)
    for step in (3, 4, 5):
        changed = observation.clone()
        changed[:, step] += 1
        moved = (model(changed, action, return_to_go, timestep, mask) - base).abs().amax(-1)
        assert bool((moved[:, step:] > 1e-9).all())
        assert not moved[:, 3:step].any()


@every_variant
@pytest.mark.parametrize("real", [1, 4, 6])
def test_a_window_padded_on_the_left_is_the_short_one(config, real):
    model = make(**config)
    inputs = make_inputs()
    short = model(*(x[:, T - real :] for x in inputs))
    mask = (torch.arange(T) >= T - real).expand(B, T)
    torch.testing.assert_close(model(*inputs, mask)[:, T - real :], short, rtol=0, atol=1e-12)


def test_a_window_padded_on_the_right_is_the_short_one():
    model = make()
    inputs = make_inputs()
    short = model(*(x[:, :4] for x in inputs))
    mask = (torch.arange(T) < 4).expand(B, T)
    torch.testing.assert_close(model(*inputs, mask)[:, :4], short, rtol=0, atol=1e-12)


@every_variant
def test_a_mask_of_real_steps_alone_is_none(config):
    model = make(**config)
    inputs = make_inputs()
    mask = torch.ones(B, T, dtype=torch.bool)
    torch.testing.assert_close(model(*inputs, mask), model(*inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", ["radt", "three_streams"])
def test_nothing_is_seen_beyond_the_window(architecture):
    """One layer, so that nothing is handed on: a full one from each step's own last steps."""
    window = 3
    settings = {"n_layer": 1, "architecture": architecture}
    banded, full = make(attention_window=window, **settings), make(**settings)
    inputs = make_inputs()
    got = banded(*inputs)
    for t in range(T):
        last = slice(max(0, t - window + 1), t + 1)
        tail = [x[:, last] for x in inputs]
        if architecture == "three_streams" and t >= window:
            continue  # its action of the step before the window is seen too
        torch.testing.assert_close(got[:, t], full(*tail)[:, -1], rtol=0, atol=1e-12)
    wide = make(attention_window=T, **settings)
    torch.testing.assert_close(wide(*inputs), full(*inputs), rtol=0, atol=1e-12)


@every_variant
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (1, 1, 2), (0,)])
def test_any_batch_dimensions(config, lead):
    model = make(**config)
    inputs = make_inputs(*lead) if lead else [x[0] for x in make_inputs(1)]
    mask = torch.rand(*lead, T) < 0.7
    got = model(*inputs, mask)
    assert got.shape == (*lead, T, D)
    flat = [x.reshape(-1, *x.shape[len(lead) :]) for x in (*inputs, mask)]
    torch.testing.assert_close(got.reshape(-1, T, D), model(*flat), rtol=0, atol=1e-12)
    with_units = model(*inputs[:3], inputs[3].unsqueeze(-1), mask.unsqueeze(-1))
    assert torch.equal(with_units, got)


@pytest.mark.parametrize("embedding", ["linear", "mlp", "fourier"])
def test_a_shift_and_scale_are_those_of_the_input(embedding):
    plain = make(return_embedding=embedding)
    scaled = make(return_embedding=embedding, return_shift=200.0, return_scale=50.0)
    observation, action, return_to_go, timestep = make_inputs()
    torch.testing.assert_close(
        scaled(observation, action, 50 * return_to_go + 200, timestep),
        plain(observation, action, return_to_go, timestep),
    )


@pytest.mark.parametrize(
    ("kind", "discrete"),
    [(RADTActor, False), (RADTActor, True), (OnlineRADTActor, None)],
    ids=["continuous", "discrete", "online"],
)
@every_variant
def test_every_parameter_has_a_gradient(config, kind, discrete):
    actor = make(kind, discrete, **config).train()
    observation, action, return_to_go, timestep = make_inputs()
    if discrete:
        action = torch.randint(-1, A, (B, T))
    outputs = actor(observation, action, return_to_go, timestep)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((x * torch.randn_like(x)).sum() for x in outputs).backward()
    for name, parameter in actor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.norm() > 0, name


@every_variant
def test_gradients_are_those_of_differences(config):
    model = make(**config)
    inputs = [x.requires_grad_() for x in make_inputs(1, steps=3)[:3]]
    mask = torch.tensor([[False, True, True]])
    torch.manual_seed(2)
    assert torch.autograd.gradcheck(lambda *x: model(*x, None, mask)[mask], inputs, fast_mode=True, atol=1e-6)


def test_seeded_twice_it_is_the_same():
    def train(seed):
        torch.manual_seed(seed)
        actor = RADTActor(S, A, {"n_embd": D, "n_layer": 2}).train()
        optimizer = torch.optim.AdamW(actor.parameters())
        inputs = make_inputs(dtype=torch.float32, seed=seed)
        for _ in range(3):
            optimizer.zero_grad()
            (actor(*inputs) - inputs[1]).square().mean().backward()
            optimizer.step()
        return torch.nn.utils.parameters_to_vector(actor.parameters())

    assert torch.equal(train(3), train(3))
    assert not torch.equal(train(3), train(4))


@every_variant
def test_weights_are_saved_and_loaded(config):
    one = make(RADTActor, **config)
    inputs = make_inputs()
    for load_into in (
        lambda actor: actor.load_state_dict(load(save(one.state_dict()))),
        lambda actor: actor.load_state_dict(one.state_dict()),
    ):
        other = RADTActor(S, A, one.transformer.config).double().eval()
        load_into(other)
        assert torch.equal(other(*inputs), one(*inputs))
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True).keys() == one.state_dict().keys()


@every_variant
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_compute_the_same_and_are_apart(config, copied):
    one = make(OnlineRADTActor, **config)
    other = copied(one)
    inputs = make_inputs()
    before = one(*inputs)[0]
    assert torch.equal(other(*inputs)[0], before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert torch.equal(one(*inputs)[0], before)
    assert not torch.equal(other(*inputs)[0], before)


@pytest.mark.parametrize("architecture", ["radt", "three_streams"])
@pytest.mark.parametrize("rate", ["resid_pdrop", "attn_pdrop"])
def test_dropout_is_at_work_in_training_alone(architecture, rate):
    off = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "architecture": architecture}
    inputs = make_inputs()
    model = make(**off | {rate: 0.5})
    assert torch.equal(model(*inputs), make(**off)(*inputs))
    model.train()
    assert not torch.equal(model(*inputs), model(*inputs))
    none = make(**off).train()
    assert torch.equal(none(*inputs), none(*inputs))


@pytest.mark.parametrize("part", ["attention", "seqra", "mlp", "attention weights", "returns' weights"])
def test_dropout_reaches_every_part(part):
    """The rate of one part alone is set, and its outputs vary."""
    model = make(n_layer=1, resid_pdrop=0.0, attn_pdrop=0.0).train()
    (block,) = model.blocks
    if part.endswith("weights"):
        (block.attention if part == "attention weights" else block.seqra).dropout = 0.5
    else:
        {"attention": block.drop, "seqra": block.seqra.drop, "mlp": block.mlp[-1]}[part].p = 0.5
    inputs = make_inputs()
    assert not torch.equal(model(*inputs), model(*inputs))


def test_dropout_has_the_rates_that_are_asked_for():
    block = make(resid_pdrop=0.3, attn_pdrop=0.2).blocks[0]
    assert [block.drop.p, block.seqra.drop.p, block.mlp[-1].p] == [0.3] * 3
    assert [block.attention.dropout, block.seqra.dropout] == [0.2] * 2


@pytest.mark.parametrize("one_hot_type", [torch.float32, torch.int64, torch.bool])
def test_one_hot_actions_are_their_indices(one_hot_type):
    model = RADTransformer(S, A, {"n_embd": D, "n_layer": 1}, discrete=True).eval()
    observation, _, return_to_go, timestep = make_inputs(dtype=torch.float32)
    index = torch.randint(-1, A, (B, T))
    one_hot = nn.functional.one_hot(index + 1, A + 1)[..., 1:].to(one_hot_type)
    for_index = model(observation, index, return_to_go, timestep)
    assert torch.equal(model(observation, one_hot, return_to_go, timestep), for_index)
    assert torch.equal(model(observation, index.int(), return_to_go, timestep), for_index)


def test_parameters_are_made_where_asked():
    assert all(x.device.type == "meta" for x in RADTActor(S, A, {"n_embd": D}, "meta").parameters())


def test_the_paper_size_has_the_parameters_of_the_official_code():
    """3 layers of width 128: 1.21 million, for Hopper's 11 features and 3 actions."""
    count = sum(x.numel() for x in RADTActor(11, 3).parameters())
    assert count == pytest.approx(1.206e6, rel=0.01)
