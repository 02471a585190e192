"""The forward pass against the formulas, written once more by loops over steps and heads in float64."""

import math

import numpy as np
import pytest
import torch

from extensions.torchrl import OnlineRADTActor, RADTActor, RADTransformer

S, A, D, T, B = 3, 2, 8, 5, 3
REAL_STEPS = (5, 2, 4)  # of each window; what stands before is padding
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
}
VARIANTS = {
    "the paper's": {},
    "no seqra": {"seqra": False},
    "no stepra": {"stepra": False},
    "no aligner": {"seqra": False, "stepra": False},
    "no gate": {"alpha_gate": False},
    "pre-norm": {"placement": "pre"},
    "pre-norm, no stepra": {"placement": "pre", "stepra": False},
    "pre-norm, no aligner": {"placement": "pre", "seqra": False, "stepra": False},
    "norms without shift": {"norm": "layernorm_nobias", "stepra": False},
    "rmsnorm": {"norm": "rmsnorm"},
    "rmsnorm, no stepra": {"norm": "rmsnorm", "stepra": False},
    "mlp of returns": {"return_embedding": "mlp"},
    "waves of returns": {"return_embedding": "fourier"},
    "returns shifted and scaled": {"return_shift": 3.0, "return_scale": 7.0},
    "one layer": {"n_layer": 1},
    "three layers": {"n_layer": 3},
    "one head": {"n_head": 1},
    "window of 1": {"attention_window": 1},
    "window of 3": {"attention_window": 3},
    "window of 3, pre-norm": {"attention_window": 3, "placement": "pre"},
    **{name: {"activation": name, "n_inner": 5} for name in ACTIVATIONS},
}


class Formulas:
    """RADT's features of one window, from the weights of a model. Vectors are numpy's, (D,)."""

    def __init__(self, model):
        self.config = model.config
        self.w = {name: x.detach().double().numpy() for name, x in model.state_dict().items()}

    def __call__(self, observation, action, return_to_go, timestep, real):
        """Rows of (T, D); those of padding are left at 0."""
        c, steps = self.config, range(len(real))
        time = [self.time(t) for t in timestep]
        self.c = [self.returns(r) for r in return_to_go] if c.uses_returns else None
        self.c_and_time = [x + p for x, p in zip(self.c, time, strict=True)] if self.c else None
        tokens = []
        for t in steps:
            tokens += [
                self.linear("embed_state", observation[t]) + time[t],
                self.linear("embed_action", action[t]) + time[t],
            ]
        # whom a step may look at: itself and real ones before it, of the last few
        window = c.attention_window or len(real)
        self.seen = [[j for j in steps if j <= i and i - j < window and real[j]] for i in steps]
        for layer in range(c.n_layer):
            tokens = self.block(layer, tokens, real)
        if c.placement == "pre":
            tokens = [x if x is None else self.affine_norm("final_norm", x) for x in tokens]
        return np.stack([np.zeros(c.n_embd) if x is None else x for x in tokens[::2]])

    def block(self, layer, tokens, real):
        c, name = self.config, f"blocks.{layer}."
        rows = [n for n in range(len(tokens)) if real[n // 2]]
        attend, norms = self.self_attention, 2 + c.seqra

        def norm(i, n, x):
            return self.stepra(layer, i, n // 2, x) if c.stepra else self.affine_norm(f"{name}norms.{i}", x)

        def each(f):
            return [f(n) if n in rows else None for n in range(len(tokens))]

        if c.placement == "post":
            x = each(lambda n: norm(0, n, tokens[n] + attend(name, n, tokens)))
            if c.seqra:
                x = each(lambda n: norm(1, n, x[n] + self.seqra(layer, n, x[n])))
            return each(lambda n: norm(norms - 1, n, x[n] + self.mlp(name, x[n])))
        normal = each(lambda n: norm(0, n, tokens[n]))
        x = each(lambda n: tokens[n] + attend(name, n, normal))
        if c.seqra:
            x = each(lambda n: x[n] + self.seqra(layer, n, norm(1, n, x[n])))
        return each(lambda n: x[n] + self.mlp(name, norm(norms - 1, n, x[n])))

    def self_attention(self, block, n, tokens):
        """Of token n to the tokens of the steps that its step sees, up to itself."""
        w_q, w_k, w_v = np.split(self.w[f"{block}attention.qkv.weight"], 3)
        others = [m for j in self.seen[n // 2] for m in (2 * j, 2 * j + 1) if m <= n]
        keys, values = ([w @ tokens[m] for m in others] for w in (w_k, w_v))
        return self.linear(f"{block}attention.out", self.attention(w_q @ tokens[n], keys, values))

    def seqra(self, layer, n, x):
        """(1 + alpha) z, alpha = W [z; x] + b, where z is what x reads in the returns that its step sees."""
        c, name, at = self.config, f"blocks.{layer}.seqra.", "conditions."
        w_k, w_v = (np.split(self.w[f"{at}{kind}.weight"], c.n_layer)[layer] for kind in ("key", "value"))
        keys, values = [], []
        for j in self.seen[n // 2]:
            keys.append(w_k @ (self.normal(self.c_and_time[j]) * self.w[f"{at}key_scale"][layer]))
            value = self.normal(self.c[j]) * self.w[f"{at}value_scale"][layer]
            if c.norm == "layernorm":
                value = value + self.w[f"{at}value_shift"][layer]
            values.append(w_v @ value)
        z = self.linear(f"{name}out", self.attention(self.w[f"{name}query.weight"] @ x, keys, values))
        if not c.alpha_gate:
            return z
        weight = np.concatenate((self.w[f"{name}gate.of_z.weight"], self.w[f"{name}gate.of_x.weight"]), 1)
        alpha = weight @ np.concatenate((z, x)) + self.w[f"{name}gate.of_z.bias"]
        return (1 + alpha) * z

    def stepra(self, layer, i, step, x):
        """N(x) (1 + g) + b, both of them linear in SiLU(c_t)."""
        silu = np.array([ACTIVATIONS["silu"](y) for y in self.c[step]])
        norms = 2 + self.config.seqra
        parts = self.linear("conditions.modulation", silu).reshape(self.config.n_layer, 2, norms, -1)
        return self.normal(x) * (1 + parts[layer, 0, i]) + parts[layer, 1, i]

    def attention(self, query, keys, values):
        """One query's softmax(q k / sqrt(d)) v, head by head."""
        heads = self.config.n_head
        out = []
        for q, ks, vs in zip(
            np.split(query, heads), np.split(np.stack(keys), heads, 1), np.split(np.stack(values), heads, 1),
            strict=True,
        ):  # fmt: skip
            scores = [math.exp(sum(q * k) / math.sqrt(len(q))) for k in ks]
            out.append(sum(s / sum(scores) * v for s, v in zip(scores, vs, strict=True)))
        return np.concatenate(out)

    def mlp(self, block, x):
        f = ACTIVATIONS[self.config.activation]
        return self.linear(f"{block}mlp.2", np.array([f(y) for y in self.linear(f"{block}mlp.0", x)]))

    def returns(self, return_to_go):
        r = (return_to_go - self.config.return_shift) / self.config.return_scale
        if self.config.return_embedding == "mlp":
            silu = ACTIVATIONS["silu"]
            r = np.array([silu(y) for y in self.linear("embed_return.hidden", r)])
        elif self.config.return_embedding == "fourier":  # 16 wavelengths, from 64 to 1/4
            angles = [2 * math.pi * float(r[0]) / 64 * 2 ** (8 * i / 15) for i in range(16)]
            r = np.array([float(r[0]), *map(math.sin, angles), *map(math.cos, angles)])
        return self.linear("embed_return.out", r)

    def time(self, t):
        angles = [t / 10_000 ** (i / D) for i in range(0, D, 2)]
        return self.linear("embed_time.out", np.array([*map(math.sin, angles), *map(math.cos, angles)]))

    def affine_norm(self, name, x):
        y = self.normal(x) * self.w[f"{name}.weight"]
        return y + self.w[f"{name}.bias"] if self.config.norm == "layernorm" else y

    def normal(self, x):
        if self.config.norm != "rmsnorm":
            x = x - x.mean()
        return x / math.sqrt((x * x).mean() + 1e-6)

    def linear(self, name, x):
        y = self.w[f"{name}.weight"] @ x
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y


def random_weights(module):
    """Nothing is left at 0 or at the identity, so that every part counts."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module.double().eval()


def windows(masked):
    """Observations, actions, returns-to-go, timesteps and mask of B windows."""
    torch.manual_seed(1)
    first = torch.tensor([7, 0, 300])[:, None]
    mask = torch.ones(B, T, dtype=torch.bool)
    if masked:
        mask = torch.arange(T) >= T - torch.tensor(REAL_STEPS)[:, None]
    return (
        torch.randn(B, T, S).double(),
        torch.randn(B, T, A).double(),
        torch.randn(B, T, 1).double() * 3,
        first + torch.arange(T),
        mask,
    )


def by_formulas(model, inputs):
    formulas = Formulas(model)
    return torch.stack(
        [torch.from_numpy(formulas(*(x[b].numpy() for x in inputs))) for b in range(len(inputs[0]))]
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_features_are_those_of_the_formulas(config, masked):
    settings = {"n_embd": D, "n_layer": 2, "n_head": 2} | config
    model = random_weights(RADTransformer(S, A, settings))
    *inputs, mask = windows(masked)
    expected = by_formulas(model, [*inputs, mask])
    assert expected.std() > 0.1
    got = model(*inputs, mask if masked else None)
    torch.testing.assert_close(got[mask], expected[mask], rtol=0, atol=1e-10)


def test_without_timesteps_the_place_in_the_window_is_the_time():
    model = random_weights(RADTransformer(S, A, {"n_embd": D, "n_layer": 1}))
    *inputs, _, mask = windows(masked=False)
    expected = by_formulas(model, [*inputs, torch.arange(T).expand(B, T), mask])
    torch.testing.assert_close(model(*inputs), expected, rtol=0, atol=1e-10)


def test_actions_are_an_affine_map_of_the_features():
    actor = random_weights(RADTActor(S, A, {"n_embd": D, "n_layer": 1}))
    inputs = windows(masked=False)
    features = by_formulas(actor.transformer, inputs)
    expected = features @ actor.action_layer.weight.T + actor.action_layer.bias
    torch.testing.assert_close(actor(*inputs), expected, rtol=0, atol=1e-10)


def test_the_online_actor_has_a_standard_deviation_between_e_to_minus_5_and_e_squared():
    actor = random_weights(OnlineRADTActor(S, A, {"n_embd": D, "n_layer": 1}))
    inputs = windows(masked=False)
    features = by_formulas(actor.transformer, inputs)
    mean = features @ actor.action_layer_mean.weight.T + actor.action_layer_mean.bias
    raw = features @ actor.action_layer_logstd.weight.T + actor.action_layer_logstd.bias
    std = torch.exp(-5 + 3.5 * (torch.tanh(raw) + 1))
    for got, expected in zip(actor(*inputs), (mean, std), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("one_hot", [False, True])
def test_discrete_actions_are_rows_of_a_table_whose_first_one_is_none_yet(one_hot):
    model = random_weights(RADTransformer(S, 4, {"n_embd": D, "n_layer": 2}, discrete=True))
    observation, _, return_to_go, timestep, mask = windows(masked=False)
    index = torch.randint(-1, 4, (B, T))
    table = model.embed_action.weight
    # the oracle has a matrix where the model has a table: columns are rows
    twin = RADTransformer(S, 5, model.config).double()
    weights = {k: v for k, v in model.state_dict().items() if k != "embed_action.weight"}
    twin.load_state_dict(
        weights | {"embed_action.weight": table.T, "embed_action.bias": torch.zeros(D).double()}
    )
    as_vectors = torch.nn.functional.one_hot(index + 1, 5).double()
    expected = by_formulas(twin, (observation, as_vectors, return_to_go, timestep, mask))
    action = as_vectors[..., 1:] if one_hot else index
    torch.testing.assert_close(
        model(observation, action, return_to_go, timestep), expected, rtol=0, atol=1e-10
    )
