"""Models as what Glasses takes: their states and answers are the host's own."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import DTActor, OnlineDTActor
from torchrl.modules.models.decision_transformer import DecisionTransformer as TorchRLTransformer
from torchrl.modules.tensordict_module.actors import DecisionTransformerInferenceWrapper  # noqa: F401
from transformers import (
    DecisionTransformerConfig,
    DecisionTransformerModel,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from extensions.glasses import (
    DecisionTransformerAdapter,
    HFCausalLM,
    ModuleAdapter,
    RADTAdapter,
    SequenceModel,
    representation_gap,
    sensitivity_profile,
)
from extensions.glasses.adapters.protocol import ACTION, RETURN, STATE, TIME
from extensions.torchrl import RADTActor
from recipes.bench.glasses_theory import random_llama, random_tokens

T, S, A = 5, 3, 2


def steps(seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)

    def draw(width):
        return torch.randn(batch, T, width, generator=generator)

    return {"observation": draw(S), "action": draw(A).tanh(), "return_to_go": draw(1)}


@pytest.fixture(params=["llama", "gpt2"])
def language_model(request):
    if request.param == "llama":
        return random_llama(0.1, 0, width=32, layers=2)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    return HFCausalLM(GPT2LMHeadModel(config).eval())


class TestLanguageModels:
    ids = torch.cat((random_tokens(7, 0), random_tokens(7, 1)))

    def test_states_are_the_hosts(self, language_model):
        model = language_model
        with torch.no_grad():
            expected = model.module(self.ids, output_hidden_states=True).hidden_states
            found = model.states(model.embed(self.ids))
        assert len(found) == 3
        for x, y in zip(found, expected, strict=True):
            assert torch.equal(x, y)

    def test_answers_are_the_hosts(self, language_model):
        model = language_model
        with torch.no_grad():
            expected = model.module(self.ids).logits
            state = model.states(model.embed(self.ids), layers=[-1])[0]
            assert torch.allclose(model.readout(state), expected, atol=1e-6)
            assert torch.allclose(model.readout(state[:, 3]), expected[:, 3], atol=1e-6)

    @pytest.mark.parametrize("kind", ["Llama4", "OpenAIGPT"])
    def test_hosts_with_ways_of_their_own(self, kind):
        """A decoder that says it is the whole model; layers that return lists."""
        if kind == "Llama4":
            size = {"hidden_size": 32, "intermediate_size": 64, "intermediate_size_mlp": 64, "head_dim": 16}
            heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
            config = Llama4TextConfig(vocab_size=64, num_hidden_layers=2, pad_token_id=0, **size, **heads)
            host = Llama4ForCausalLM(config).eval()
        else:
            config = OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=2)
            host = OpenAIGPTLMHeadModel(config).eval()
        model = HFCausalLM(host)
        with torch.no_grad():
            states = model.states(model.embed(self.ids))
            assert torch.allclose(model.readout(states[-1]), host(self.ids).logits, atol=1e-6)
        assert len(states) == 3
        profile = sensitivity_profile(model, self.ids, source_layer=1, probes=2, mode="hutchinson")
        assert (profile.fro[:, -1] > 0).all()

    def test_some_layers_and_one_position(self, language_model):
        model = language_model
        with torch.no_grad():
            every = model.states(model.embed(self.ids))
            one, last = model.states(model.embed(self.ids), layers=[1, -1], position=torch.tensor([2, 6]))
        assert torch.equal(one, torch.stack((every[1][0, 2], every[1][1, 6])))
        assert torch.equal(last, torch.stack((every[2][0, 2], every[2][1, 6])))

    def test_hooks_are_gone_afterwards(self, language_model):
        model = language_model
        model.states(model.embed(self.ids))
        assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)
        assert "forward" not in model.backbone.__dict__

    def test_it_is_a_sequence_model(self, language_model):
        assert isinstance(language_model, SequenceModel)
        assert language_model.token_roles is None

    def test_what_is_refused(self):
        with pytest.raises(TypeError, match="takes a causal language model of transformers, got Linear"):
            HFCausalLM(nn.Linear(2, 2))
        small = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        with pytest.raises(TypeError, match="is an encoder-decoder"):
            HFCausalLM(T5ForConditionalGeneration(small))

    def test_longer_sequences_than_there_are_positions_for(self):
        config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=8)
        model = HFCausalLM(GPT2LMHeadModel(config).eval())
        assert model.longest == 8
        assert random_llama(0.1, 0).longest is None
        assert model.embed(random_tokens(8, 0)).shape == (1, 8, 16)
        with pytest.raises(ValueError, match=r"GPT2LMHeadModel has learned positions for 8 tokens, .* has 9"):
            model.embed(random_tokens(9, 0))

    def test_models_without_attention_have_states_all_the_same(self):
        config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
        model = HFCausalLM(MambaForCausalLM(config).eval())
        report = representation_gap(model, self.ids, self.ids.flip(1), dtypes=())
        assert report.gap["float32"].shape == (2, 3, 3)


def dt_of_transformers():
    config = DecisionTransformerConfig(
        state_dim=S, act_dim=A, hidden_size=16, n_layer=2, n_head=2, max_ep_len=32
    )
    return DecisionTransformerModel(config).eval()


class TestDecisionTransformers:
    def test_actions_of_transformers_are_its_own(self):
        host = dt_of_transformers()
        model = DecisionTransformerAdapter(host)
        batch = steps()
        batch = {
            "states": batch["observation"],
            "actions": batch["action"],
            "returns_to_go": batch["return_to_go"],
            "timesteps": torch.arange(T).expand(2, T),
        }
        with torch.no_grad():
            expected = host(**batch, rewards=None, attention_mask=torch.ones(2, T).long()).action_preds
            state = model.states(model.embed(batch), layers=[-1])[0]
            found = model.readout(state[:, 1::3])
        assert torch.allclose(found, expected, atol=1e-6)

    @pytest.mark.parametrize("kind", [DTActor, OnlineDTActor])
    def test_actions_of_torchrl_are_its_own(self, kind):
        config = TorchRLTransformer.default_config()
        config.n_embd, config.n_head, config.n_layer, config.n_inner = 16, 2, 2, 32
        host = kind(state_dim=S, action_dim=A, transformer_config=config).eval()
        model = DecisionTransformerAdapter(host)
        batch = steps()
        with torch.no_grad():
            expected = host(batch["observation"], batch["action"], batch["return_to_go"])
            expected = expected[0] if isinstance(expected, tuple) else expected
            state = model.states(model.embed(batch), layers=[-1])[0]
            found = model.readout(state[:, 1::3])
        assert torch.allclose(found, expected, atol=1e-6)

    def test_a_tensordict_is_a_batch(self):
        model = DecisionTransformerAdapter(dt_of_transformers())
        batch = steps() | {"timestep": torch.arange(T).expand(2, T)}
        assert torch.equal(model.embed(TensorDict(batch, [2])), model.embed(batch))

    def test_shares_of_roles(self):
        model = DecisionTransformerAdapter(dt_of_transformers())
        batch = steps() | {"timestep": torch.arange(T).expand(2, T)}
        profile = sensitivity_profile(model, batch, mode="exact", output="logits")
        assert profile.roles.tolist() == [RETURN, STATE, ACTION] * T
        assert torch.allclose(profile.per_role_sum.sum(1), torch.ones(2))
        assert profile.target.tolist() == [3 * T - 2] * 2
        assert (profile.fro[:, -1] == 0).all()  # the action that is predicted

    def test_padded_steps(self):
        """What stands at padded steps is never read."""
        model = DecisionTransformerAdapter(dt_of_transformers())
        batch = steps() | {"timestep": torch.arange(T).expand(2, T), "mask": torch.ones(2, T)}
        batch["mask"][:, :2] = 0
        other = {key: x.clone() for key, x in batch.items()}
        other["observation"][:, :2] = 9
        report = representation_gap(model, batch, other, dtypes=())
        assert (report.gap["float32"] == 0).all()
        assert report.argmax_equal["float32"].all()
        assert report.js_divergence["float32"].isnan().all()

    def test_what_is_refused(self):
        with pytest.raises(TypeError, match="takes DecisionTransformerModel of transformers"):
            DecisionTransformerAdapter(nn.Linear(2, 2))
        model = DecisionTransformerAdapter(dt_of_transformers())
        with pytest.raises(
            ValueError, match="a batch needs 'return_to_go' or 'returns_to_go'; it has observation"
        ):
            model.embed({"observation": torch.randn(1, T, S)})

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"observation": torch.zeros(2, T, S + 1)}, rf"observation must be \(windows, steps, {S}\), got"),
            ({"return_to_go": torch.zeros(2, T)}, r"return_to_go must be \(windows, steps, 1\), got \(2, "),
            ({"action": torch.zeros(2, T - 1, A)}, "all must have as many windows and steps, got"),
        ],
    )
    def test_windows_of_other_shapes_are_refused(self, changed, message):
        for model in (DecisionTransformerAdapter(DTActor(S, A).eval()), RADTAdapter(RADTActor(S, A).eval())):
            with pytest.raises(ValueError, match=message):
                model.embed({**steps(), **changed})


class TestRADT:
    def test_inner_layers_hold_other_tokens(self, host):
        with pytest.raises(ValueError, match="layer 1 of RADTActor does not hold the tokens that go in"):
            sensitivity_profile(RADTAdapter(host), steps(), source_layer=1)

    @pytest.fixture
    def host(self):
        from extensions.torchrl.radt.model import RADTransformer

        config = RADTransformer.default_config()
        return RADTActor(state_dim=S, action_dim=A, transformer_config=config).eval()

    def test_actions_are_its_own(self, host):
        model = RADTAdapter(host)
        batch = steps()
        with torch.no_grad():
            expected = host(batch["observation"], batch["action"], batch["return_to_go"])
            state = model.states(model.embed(batch), layers=[-1])[0]
            found = model.readout(state[:, 1::4])
        assert torch.allclose(found, expected, atol=1e-5)

    def test_roles_and_shares(self, host):
        model = RADTAdapter(host)
        profile = sensitivity_profile(model, steps(), mode="exact", output="logits")
        assert profile.roles.tolist() == [RETURN, STATE, ACTION, TIME] * T
        assert (profile.per_role_sum[:, RETURN] > 0).all()
        assert (profile.fro[:, -2] == 0).all()

    def test_what_is_refused(self):
        with pytest.raises(TypeError, match="takes RADTActor or OnlineRADTActor, got Linear"):
            RADTAdapter(nn.Linear(2, 2))


class TestPlainModels:
    def test_a_callable(self):
        model = ModuleAdapter(lambda x: x.cumsum(1), readout=lambda s: s.sum(-1, keepdim=True))
        x = torch.randn(2, 4, 3)
        first, last = model.states(x)
        assert torch.equal(first, x)
        assert torch.equal(last, x.cumsum(1))
        assert torch.allclose(model.readout(last[:, -1]), x.sum((1, 2))[:, None])

    def test_layers(self):
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3)).eval()
        model = ModuleAdapter(net, blocks=net[:2])
        x = torch.randn(2, 4, 3)
        with torch.no_grad():
            states = model.states(x)
            raw = model.states(x, layers=[-1], raw_last=True)[0]
        assert torch.equal(states[1], net[0](x))
        assert torch.equal(states[2], net(x))
        assert torch.equal(raw, net[:2](x))

    def test_masks(self):
        def mean(x, mask=None):
            w = torch.ones(x.shape[:2]) if mask is None else mask.float()
            return (x * w[..., None]).cumsum(1) / w.cumsum(1).clamp(min=1)[..., None]

        model = ModuleAdapter(mean)
        x = torch.randn(1, 4, 3)
        padded = torch.cat((torch.randn(1, 2, 3), x), 1)
        mask = torch.tensor([[False] * 2 + [True] * 4])
        assert torch.allclose(model.states(padded, mask)[1][:, 2:], model.states(x)[1], atol=1e-6)

    @pytest.mark.parametrize("layers", [[2], [-3]])
    def test_no_such_layer(self, layers):
        with pytest.raises(ValueError, match="layers must be from 0 to 1"):
            ModuleAdapter(lambda x: x).states(torch.randn(1, 2, 3), layers=layers)

    def test_a_protocol_is_for_others_too(self):
        class Mine:
            token_roles = None

            def embed(self, batch): ...
            def states(self, emb, mask=None, layers=None): ...
            def attentions(self, emb, mask=None): ...
            def readout(self, state): ...

        assert isinstance(Mine(), SequenceModel)


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "Camembert", "Bert"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_that_begin_behind_the_number_of_the_padding(kind, side):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        is_decoder=True, pad_token_id=1, max_position_embeddings=22, initializer_range=0.3,
    )  # fmt: skip
    head = "BertLMHeadModel" if kind == "Bert" else f"{kind}ForCausalLM"
    model = HFCausalLM(getattr(transformers, head)(config).eval())
    ids = torch.randint(4, 60, (1, 12))
    pad = torch.ones(1, 5, dtype=torch.long)
    parts = {"input_ids": (pad, ids), "attention_mask": (0 * pad, torch.ones_like(ids))}
    batch = {key: torch.cat(x if side == "left" else x[::-1], 1) for key, x in parts.items()}
    with torch.no_grad():
        expected = model.states(model.embed(ids), layers=[-1])[0]
        found = model.states(model.embed(batch), model.mask(batch), layers=[-1])[0]
    real = slice(5, None) if side == "left" else slice(None, -5)
    assert torch.allclose(found[:, real], expected, atol=1e-5)
    assert model.longest == (22 if kind == "Bert" else 20)
    model.module(torch.full((1, model.longest), 5))
    with pytest.raises(ValueError, match=f"learned positions for {model.longest} tokens"):
        model.embed(torch.full((1, model.longest + 1), 5))


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_learned_prompts_are_refused(make_llama, kind):
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(make_llama(64), config).eval()
    with pytest.raises(TypeError, match=r"PeftModelForCausalLM puts learned vectors in front .*TUNING"):
        HFCausalLM(model)


def test_adapters_of_weights_are_in_the_states(make_llama):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)
    model = HFCausalLM(peft.get_peft_model(make_llama(64), config).eval())
    ids = torch.randint(64, (1, 8))
    with torch.no_grad():
        logits = model.readout(model.states(model.embed(ids))[-1])
        assert torch.allclose(logits, model.module(ids).logits, atol=1e-5)
        with model.module.disable_adapter():
            assert not torch.allclose(logits, model.module(ids).logits, atol=1e-2)
