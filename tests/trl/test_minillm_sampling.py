"""Both ways to sample have the law alpha p + (1 - alpha) q, and KV caches change nothing."""

import itertools
import math

import pytest
import torch
from scipy.stats import chi2
from torch import nn

from extensions.trl.minillm import sampling
from extensions.trl.minillm.sampling import sample_mixture

transformers = pytest.importorskip("transformers")

EOS, PAD = 3, 0
T = 3


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gpt2(seed, vocab=4, width=8, **settings):
    """A small model in float64 whose probabilities are far from uniform and from each other's."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=vocab, n_embd=width, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5, **settings
    )
    return transformers.GPT2LMHeadModel(config).double().eval()


@pytest.fixture(scope="module")
def pair():
    return gpt2(0), gpt2(1, width=12)


def draw(student, teacher, rows=1, prompt=(1, 2), **settings):
    ids = torch.tensor(prompt).repeat(rows, 1)
    settings = {
        "alpha": 0.3,
        "max_new_tokens": T,
        "eos_token_ids": [EOS],
        "pad_token_id": PAD,
        **settings,
    }
    return sample_mixture(student, teacher, ids, torch.ones_like(ids), **settings)


def sequences(eos=(EOS,)):
    """All completions of up to T of the four tokens."""
    for tokens in itertools.product(range(4), repeat=T):
        ends = [t for t, token in enumerate(tokens) if token in eos]
        if not ends or set(tokens[ends[0] + 1 :]) <= {PAD}:
            yield tokens


@torch.no_grad()
def law_of(student, teacher, alpha, prompt=(1, 2), eos=(EOS,), temperature=1.0):
    """The mixture's probability of each completion, by a forward of every prefix without a cache."""
    law = {}
    for tokens in sequences(eos):
        probability = 1.0
        for t, token in enumerate(tokens):
            ids = torch.tensor([[*prompt, *tokens[:t]]])
            p, q = (
                torch.softmax(model(input_ids=ids).logits[0, -1] / temperature, -1)[token].item()
                for model in (teacher, student)
            )
            probability *= alpha * p + (1 - alpha) * q
            if token in eos:
                break
        law[tokens] = probability
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    return law


class Branches:
    """In place of the sampler's draws: row b is led along sequence b, and its probability is kept."""

    def __init__(self, monkeypatch, eos=(EOS,)):
        self.all = list(sequences(eos))
        self.wanted = torch.tensor(self.all)  # (B, T)
        monkeypatch.setattr(sampling, "_draw", self.draw)

    def walk(self, **settings):
        self.steps = []
        out = draw(rows=len(self.all), **settings)
        assert out.tolist() == self.wanted.tolist()
        live = torch.ones(len(self.all), dtype=torch.bool)
        probability = torch.ones(len(self.all), dtype=torch.float64)
        for t, step in enumerate(self.steps):
            probability = torch.where(live, probability * step, probability)
            live &= ~torch.isin(self.wanted[:, t], torch.tensor(settings["eos_token_ids"]))
        return probability

    def draw(self, probs):
        tokens = self.wanted[:, len(self.steps)]
        assert probs.dtype == torch.float64
        torch.testing.assert_close(probs.sum(1), torch.ones_like(probs[:, 0]))
        self.steps.append(probs.gather(1, tokens[:, None])[:, 0])
        return tokens


@pytest.mark.parametrize(("eos", "temperature"), [((3,), 1.0), ((2, 3), 0.7)])
@pytest.mark.parametrize("method", ["coin_flip", "mixture"])
def test_the_law_of_all_completions_is_the_mixtures(pair, monkeypatch, method, eos, temperature):
    student, teacher = pair
    alpha = 0.3
    branches = Branches(monkeypatch, eos)
    settings = {
        "student": student,
        "teacher": teacher,
        "method": method,
        "alpha": alpha,
        "eos_token_ids": list(eos),
        "temperature": temperature,
    }
    if method == "mixture":
        law = branches.walk(**settings)
    else:
        law = torch.zeros(len(branches.all), dtype=torch.float64)
        for flips in itertools.product([False, True], repeat=T):
            monkeypatch.setattr(sampling, "_flip", lambda *_, flips=flips: list(flips))
            law += alpha ** sum(flips) * (1 - alpha) ** (T - sum(flips)) * branches.walk(**settings)
    expected = law_of(student, teacher, alpha, eos=eos, temperature=temperature)
    assert list(expected) == branches.all
    torch.testing.assert_close(
        law, torch.tensor(list(expected.values()), dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_each_group_goes_by_its_own_coins_and_has_the_law_it_has_alone(pair, monkeypatch):
    """For any coins of the others: so the mean over all coins is the mixture for each, as it is for one."""
    branches = Branches(monkeypatch)
    settings = {"student": pair[0], "teacher": pair[1], "alpha": 0.3, "eos_token_ids": [EOS]}
    patterns = list(itertools.product([False, True], repeat=T))
    alone = {}
    for flips in patterns:
        monkeypatch.setattr(sampling, "_flip", lambda *_, flips=flips: list(flips))
        alone[flips] = branches.walk(**settings)
    groups = torch.arange(len(branches.all)) % 3
    for first in range(len(patterns)):
        flips = [patterns[(first + 3 * i) % len(patterns)] for i in range(3)]
        coins = iter(flips)
        monkeypatch.setattr(sampling, "_flip", lambda *_, coins=coins: list(next(coins)))
        together = branches.walk(**settings, coin_groups=groups)
        for i in range(3):
            torch.testing.assert_close(
                together[groups == i], alone[flips[i]][groups == i], rtol=0, atol=1e-12
            )


def test_tokens_of_probability_zero_are_never_drawn(monkeypatch):
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    for u, expected in ((0.0, [1, 2]), (0.5, [3, 2]), (1 - 2.0**-53, [3, 2])):
        monkeypatch.setattr(torch, "rand", lambda *size, u=u, **settings: torch.full(size, u, **settings))
        assert sampling._draw(probs).tolist() == expected


def test_tokens_rarer_than_float32_resolves_are_drawn(monkeypatch):
    # Each of the last thousand is less than a float32 can add to a sum near 1.
    probs = torch.tensor([[0.99999, *[1e-8] * 1_000]])
    for token in (1, 500, 1_000):
        u = (probs[0, :token].double().sum() + 0.5e-8) / probs.double().sum()
        monkeypatch.setattr(torch, "rand", lambda *size, u=u, **_: u.expand(size))
        assert sampling._draw(probs).item() == token


def counts_of(out, law):
    """How often each completion came, in the order of the law."""
    found = dict.fromkeys(law, 0)
    rows, times = out.unique(dim=0, return_counts=True)
    for tokens, n in zip(rows.tolist(), times.tolist(), strict=True):
        found[(*tokens, *[PAD] * (T - len(tokens)))] += n
    return torch.tensor(list(found.values()), dtype=torch.float64)


def assert_drawn_from(counts, law):
    """Pearson's chi-square below the quantile of four standard deviations."""
    expected = torch.tensor(list(law.values()), dtype=torch.float64) * counts.sum()
    assert expected.min() > 5
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    assert statistic < chi2.isf(6.3e-5, len(law) - 1)


def test_draws_of_the_mixture_come_as_often_as_they_should(pair):
    torch.manual_seed(0)
    law = law_of(*pair, alpha=0.3)
    assert_drawn_from(counts_of(draw(*pair, rows=40_000, method="mixture"), law), law)


def test_draws_of_coin_flips_come_as_often_as_they_should(pair):
    torch.manual_seed(0)
    law = law_of(*pair, alpha=0.3)
    expected = torch.tensor(list(law.values()), dtype=torch.float64)
    calls, rows = 400, 64
    shares = torch.stack([counts_of(draw(*pair, rows=rows), law) / rows for _ in range(calls)])
    # Rows of one call share their coins, so calls are what is independent.
    errors = (shares.mean(0) - expected) / (shares.std(0) / math.sqrt(calls))
    assert errors.abs().max() < 4
    # And they do share them: the mean over all varies more than it would with coins of their own.
    alone = (expected * (1 - expected) / (calls * rows)).sqrt()
    assert (shares.std(0) / math.sqrt(calls) / alone).max() > 1.5


def test_draws_with_coins_of_their_own_are_independent_and_come_as_often_as_they_should(pair):
    torch.manual_seed(0)
    law = law_of(*pair, alpha=0.3)
    rows = 40_000
    assert_drawn_from(counts_of(draw(*pair, rows=rows, coin_groups=torch.arange(rows)), law), law)


def tiny(name, seed=0, width=16):
    torch.manual_seed(seed)
    common = {"vocab_size": 50, "hidden_size": width, "num_hidden_layers": 2, "initializer_range": 0.3}
    rope = {
        **common,
        "intermediate_size": 2 * width,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    config = {
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=50, n_embd=width, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3
        ),
        "llama": lambda: transformers.LlamaConfig(**rope),
        "qwen3": lambda: transformers.Qwen3Config(**rope, head_dim=8),
        "mistral": lambda: transformers.MistralConfig(**rope, sliding_window=4),
        "opt": lambda: transformers.OPTConfig(
            **common,
            ffn_dim=2 * width,
            num_attention_heads=2,
            word_embed_proj_dim=width,
            max_position_embeddings=64,
            init_std=0.3,
        ),
    }[name]()
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def padded(lengths=(7, 4, 1, 7), vocab=50):
    """Prompts of these lengths, with rubbish where the mask is 0."""
    generator = torch.Generator().manual_seed(0)
    width = max(lengths)
    ids = torch.randint(vocab, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return ids, mask


@torch.no_grad()
def without_a_cache(model, ids, mask, completions, row, t, temperature):
    """The probabilities of completion t of a row from one forward of that row alone, unpadded."""
    alone = torch.cat([ids[row][mask[row] == 1], completions[row, :t]])[None]
    return torch.softmax(model(input_ids=alone).logits[0, -1].double() / temperature, -1)


@pytest.mark.parametrize("lengths", [(7, 4, 1, 7), (7, 7, 7, 7)], ids=["padded", "unpadded"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "mistral", "opt"])
@pytest.mark.parametrize("method", ["coin_flip", "mixture"])
def test_every_step_equals_a_forward_without_cache_or_padding(monkeypatch, name, method, lengths):
    student, teacher = tiny(name), tiny(name, seed=1, width=32)
    flips = [bool(int(c)) for c in "001011100101"]
    steps = []
    real_draw = sampling._draw

    def record(probs):
        steps.append(probs)
        return real_draw(probs)

    monkeypatch.setattr(sampling, "_draw", record)
    monkeypatch.setattr(sampling, "_flip", lambda *_: flips)
    torch.manual_seed(0)
    ids, mask = padded(lengths)
    eos = list(range(5))  # frequent, so that rows end at different times
    out = sample_mixture(
        student,
        teacher,
        ids,
        mask,
        alpha=0.4,
        max_new_tokens=len(flips),
        eos_token_ids=eos,
        pad_token_id=49,
        temperature=0.9,
        method=method,
    )
    compared = 0
    for row, t in itertools.product(range(len(ids)), range(out.shape[1])):
        if set(out[row, :t].tolist()) & set(eos):
            assert out[row, t] == 49
            continue
        p, q = (without_a_cache(m, ids, mask, out, row, t, 0.9) for m in (teacher, student))
        expected = (p if flips[t] else q) if method == "coin_flip" else 0.4 * p + 0.6 * q
        torch.testing.assert_close(steps[t][row].double(), expected, rtol=0, atol=1e-5)
        compared += 1
    assert compared > 12  # the rows of these seeds do not end at once


def count_forwards(model):
    """The number of tokens of each forward that follows."""
    lengths = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return lengths


def test_coin_flips_run_one_model_a_position_and_each_reads_everything_once(monkeypatch):
    student, teacher = gpt2(0), gpt2(1)
    monkeypatch.setattr(sampling, "_flip", lambda *_: [bool(int(c)) for c in "00101100"])
    read = count_forwards(student), count_forwards(teacher)
    draw(student, teacher, max_new_tokens=8, eos_token_ids=[])
    assert read == ([2, 1, 2, 3, 1], [4, 2, 1])  # the prompt has two tokens
    read = count_forwards(student), count_forwards(teacher)
    draw(student, teacher, max_new_tokens=8, eos_token_ids=[], method="mixture")
    assert read == ([2, *[1] * 7], [2, *[1] * 7])


def test_groups_that_agree_run_one_model_a_position(monkeypatch):
    student, teacher = gpt2(0), gpt2(1)
    coins = iter(["00101100", "00100101"])
    monkeypatch.setattr(sampling, "_flip", lambda *_: [bool(int(c)) for c in next(coins)])
    read = count_forwards(student), count_forwards(teacher)
    settings = {"max_new_tokens": 8, "eos_token_ids": [], "coin_groups": torch.tensor([0, 1, 1])}
    draw(student, teacher, rows=3, **settings)
    assert read == ([2, 1, 2, 1, 2, 1], [4, 2, 1, 2])  # of both, the sixth token; of the teacher, the third


@pytest.mark.parametrize("method", ["coin_flip", "mixture"])
@pytest.mark.parametrize("flips", ["00101100", "00101111", "00000000"])
def test_all_can_be_read_by_the_teacher_as_in_one_forward(monkeypatch, method, flips):
    """All that there is to predict from: the prompt, and the answers but for their last tokens."""
    student, teacher = tiny("gpt2"), tiny("gpt2", seed=1)
    ids, mask = padded()
    monkeypatch.setattr(sampling, "_flip", lambda *_: [bool(int(c)) for c in flips])
    states = []
    hook = teacher.transformer.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    read = count_forwards(student)
    settings = {"alpha": 0.4, "max_new_tokens": 8, "eos_token_ids": [], "pad_token_id": 49}
    out = sample_mixture(student, teacher, ids, mask, method=method, teacher_reads_all=True, **settings)
    hook.remove()
    assert len(read) == (8 if method == "mixture" else flips.count("0"))  # and no more by the student
    whole = torch.cat([ids, out[:, :-1]], 1)
    seen = torch.cat([mask, torch.ones_like(out[:, :-1])], 1)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        once = teacher.transformer(input_ids=whole, attention_mask=seen, position_ids=positions)
    torch.testing.assert_close(
        torch.cat(states, 1)[seen != 0], once.last_hidden_state[seen != 0], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("method", ["coin_flip", "mixture"])
def test_at_the_ends_of_alpha_one_model_is_enough(monkeypatch, pair, method):
    student, teacher = pair
    for alpha, models in ((0, (student, None)), (1, (None, teacher))):
        torch.manual_seed(0)
        alone = draw(*models, rows=50, alpha=alpha, method=method)
        torch.manual_seed(0)
        model = student if alpha == 0 else teacher
        assert torch.equal(alone, draw(model, model, rows=50, alpha=0.5, method="mixture"))
    with pytest.raises(ValueError, match="teacher is None"):
        draw(student, None, method=method)


def test_alpha_one_is_the_teachers_own_generate(monkeypatch, pair):
    # generate() draws in another way; given that, the same seed gives the same tokens.
    monkeypatch.setattr(sampling, "_draw", lambda probs: torch.multinomial(probs, 1).squeeze(1))
    teacher = pair[1]
    ids, mask = padded((6, 3, 2, 1), vocab=3)
    ours, theirs = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        ours.append(
            sample_mixture(
                None,
                teacher,
                ids,
                mask,
                alpha=1,
                max_new_tokens=9,
                eos_token_ids=[EOS],
                pad_token_id=PAD,
            ).tolist()
        )
        torch.manual_seed(seed)
        out = teacher.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=9,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
        theirs.append(out[:, ids.shape[1] :].tolist())
    assert ours == theirs


@pytest.mark.parametrize("method", ["coin_flip", "mixture"])
def test_it_stops_when_all_rows_have_ended_or_all_processes(pair, method):
    torch.manual_seed(0)
    out = draw(*pair, rows=6, max_new_tokens=20, method=method, eos_token_ids=[1, 2, 3])
    ended = torch.isin(out, torch.tensor([1, 2, 3]))
    assert ended.any(1).all()
    assert out.shape[1] < 20
    assert ended[:, -1].any()  # no column more than the longest needs
    after = (ended.cumsum(1) - ended.int()) > 0
    assert (out[after] == PAD).all()
    assert after.any()
    torch.manual_seed(0)
    padded_with_eos = draw(
        *pair, rows=6, max_new_tokens=20, method=method, eos_token_ids=[1, 2, 3], pad_token_id=3
    )
    assert torch.equal(padded_with_eos, torch.where(after, 3, out))

    asked = []

    def another_goes_on_for_a_while(going):
        asked.append(going)
        return len(asked) < 15

    torch.manual_seed(0)
    longer = draw(
        *pair,
        rows=6,
        max_new_tokens=20,
        method=method,
        eos_token_ids=[1, 2, 3],
        synced=another_goes_on_for_a_while,
    )
    assert longer.shape[1] == 15
    # One coin a position is drawn in advance, so the tokens are those of the call that stopped by itself.
    assert torch.equal(longer[:, : out.shape[1]], out)
    assert (longer[:, out.shape[1] :] == PAD).all()
    assert asked == [True] * (out.shape[1] - 1) + [False] * (16 - out.shape[1])


def test_seeded_twice_is_equal_and_coins_have_a_generator_of_their_own(pair):
    def twice(**settings):
        torch.manual_seed(7)
        return draw(*pair, rows=20, max_new_tokens=8, eos_token_ids=[], **settings)

    assert torch.equal(twice(), twice())
    assert torch.equal(twice(method="mixture"), twice(method="mixture"))
    coins = torch.Generator().manual_seed(3)
    first = twice(coins=coins)
    assert not torch.equal(first, twice(coins=coins))  # it has moved on
    assert torch.equal(first, twice(coins=torch.Generator().manual_seed(3)))
    # By as many flips as there could be, whatever was drawn: generators of two processes stay together.
    stopped = torch.Generator().manual_seed(3)
    draw(*pair, max_new_tokens=8, eos_token_ids=[0, 1, 2, 3], coins=stopped)
    other = torch.Generator().manual_seed(3)
    draw(*pair, max_new_tokens=8, eos_token_ids=[], coins=other)
    assert torch.equal(stopped.get_state(), other.get_state())


def test_coins_fall_to_the_teacher_at_the_rate_alpha():
    flips = torch.tensor(sampling._flip(0.2, 100_000, torch.Generator().manual_seed(0))).double()
    assert abs(flips.mean().item() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 100_000)
    pairs = (flips[1:] * flips[:-1]).mean().item()
    assert abs(pairs - 0.04) < 4 * math.sqrt(0.04 * 0.96 / 100_000) * 1.5  # overlapping pairs vary a bit more


def test_padded_vocabularies_are_cut_to_what_both_have(monkeypatch):
    student, teacher = gpt2(0, vocab=6), gpt2(1, vocab=9)
    with pytest.raises(ValueError, match=r"\{'student': 6, 'teacher': 9\}.*vocab_size=len\(tokenizer\)"):
        draw(student, teacher)
    torch.manual_seed(0)
    for method in sampling.METHODS:
        out = draw(student, teacher, rows=300, vocab_size=4, method=method)
        assert set(out.flatten().tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"vocab_size must be in 1\.\.6"):
        draw(student, teacher, vocab_size=7)


class Wrapper(nn.Module):
    """As DDP: the model is ``.module``, and forward names no argument."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_wrapped_models_are_called_as_they_are_and_get_position_ids():
    peft = pytest.importorskip("peft")
    student, teacher = tiny("gpt2"), tiny("gpt2", seed=1)
    ids, mask = padded()
    settings = {
        "alpha": 0.4,
        "max_new_tokens": 10,
        "eos_token_ids": [],
        "pad_token_id": 49,
    }
    torch.manual_seed(0)
    bare = sample_mixture(student, teacher, ids, mask, **settings)
    lora = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)  # its B is zero at first
    adapted = peft.get_peft_model(student, lora).eval()
    wrapped = Wrapper(adapted)
    read = count_forwards(wrapped)
    torch.manual_seed(0)
    # LoRA's B is zero at first.
    assert torch.equal(bare, sample_mixture(wrapped, Wrapper(teacher), ids, mask, **settings))
    assert read  # not gone around: what a wrapper does around forward must happen
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_()
    torch.manual_seed(0)
    assert not torch.equal(bare, sample_mixture(wrapped, Wrapper(teacher), ids, mask, **settings))


def test_gradients_are_off_and_logits_are_of_the_last_token_only():
    student = gpt2(0)
    seen = []
    student.register_forward_hook(lambda _module, _args, out: seen.append(out.logits))
    draw(student, gpt2(1), rows=5, eos_token_ids=[], method="mixture")
    assert [logits.shape for logits in seen] == [(5, 1, 4)] * T
    assert not any(logits.requires_grad for logits in seen)
    assert torch.is_grad_enabled()


def test_gradient_checkpointing_is_named_where_it_takes_the_cache():
    student = tiny("llama")
    student.gradient_checkpointing_enable()
    student.train()
    ids, mask = padded()
    settings = {"alpha": 0, "max_new_tokens": 3, "eos_token_ids": [], "pad_token_id": 49}
    with pytest.raises(RuntimeError, match=r"student returned no KV cache.*[Gg]radient checkpointing"):
        sample_mixture(student, None, ids, mask, **settings)
    sample_mixture(student.eval(), None, ids, mask, **settings)


@pytest.mark.parametrize("method", ["coin_flip", "mixture"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_logits_are_named_with_model_and_position(pair, monkeypatch, method, bad):
    student = pair[0]
    monkeypatch.setattr(sampling, "_flip", lambda *_: [False, False, True])
    spoiled = gpt2(1, width=12)
    calls = []

    def spoil(_module, _args, out):
        calls.append(1)
        if method == "coin_flip" or len(calls) == 3:
            out.logits[1] = bad
        return out

    spoiled.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"teacher's logits.*position 2.*rows \[1\] of 2"):
        draw(student, spoiled, rows=2, method=method, eos_token_ids=[])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.2}, r"alpha .* in \[0, 1\], got 1.2"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"method": "coins"}, r"method must be one of \('coin_flip', 'mixture'\), got 'coins'"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 31}, "has 2 tokens .* has 32 positions: truncate prompts to 1 tokens"),
        ({"eos_token_ids": [3, 4]}, r"eos_token_ids must be in 0\.\.3"),
        ({"coin_groups": torch.zeros(2).long()}, r"coin_groups must have the shape \(1,\), got \(2,\)"),
        ({"pad_token_id": -100}, r"pad_token_id must be in 0\.\.3"),
        ({"pad_token_id": 4}, r"pad_token_id must be in 0\.\.3"),
    ],
)
def test_settings_out_of_range_are_refused(pair, settings, message):
    with pytest.raises(ValueError, match=message):
        draw(*pair, **settings)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 2, 0]], [[1, 1, 0]], "pad on the left"),
        ([[1, 0, 2]], [[1, 0, 1]], "0 after a 1: pad on the left"),
        ([[1, 2], [0, 0]], [[1, 1], [0, 0]], "or is empty"),
        ([[1, 2]], [[1, 1, 1]], r"shape \(batch, prompt length\), got \(1, 2\) and \(1, 3\)"),
        ([[]], [[]], "shape"),
    ],
)
def test_prompts_must_be_padded_on_the_left(pair, ids, mask, message):
    ids, mask = torch.tensor(ids, dtype=torch.int64), torch.tensor(mask, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        sample_mixture(*pair, ids, mask, alpha=0.5, max_new_tokens=2, eos_token_ids=[EOS], pad_token_id=PAD)


def test_padding_does_not_count_against_the_models_length(pair):
    ids = torch.full((1, 40), PAD)
    mask = torch.zeros_like(ids)
    ids[:, -2:], mask[:, -2:] = 1, 1
    settings = {"alpha": 0.5, "eos_token_ids": [], "pad_token_id": PAD}
    out = sample_mixture(*pair, ids, mask, max_new_tokens=30, **settings)  # 32 positions are all there are
    assert out.shape == (1, 30)
    with pytest.raises(ValueError, match="positions"):
        sample_mixture(*pair, ids, mask, max_new_tokens=31, **settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_law_is_the_same(pair):
    torch.manual_seed(0)
    law = law_of(*pair, alpha=0.3)
    student, teacher = gpt2(0).cuda(), gpt2(1, width=12).cuda()
    ids = torch.tensor([[1, 2]], device="cuda").repeat(40_000, 1)
    out = sample_mixture(
        student,
        teacher,
        ids,
        torch.ones_like(ids),
        alpha=0.3,
        max_new_tokens=T,
        eos_token_ids=[EOS],
        pad_token_id=PAD,
        method="mixture",
    )
    assert_drawn_from(counts_of(out.cpu(), law), law)
    half = sample_mixture(
        student.bfloat16(),
        teacher.bfloat16(),
        ids[:64],
        torch.ones_like(ids[:64]),
        alpha=0.3,
        max_new_tokens=20,
        eos_token_ids=[EOS],
        pad_token_id=PAD,
    )
    assert half.is_cuda
