"""Samples, scores, divergences and exposure bias against all sequences of a small world, in float64."""

import itertools
import math

import pytest
import torch

from extensions.trl.evaluation import (
    choice_probabilities,
    completion_log_probs,
    exposure_bias,
    generate_texts,
    sample_completions,
    score_completions,
    sequence_divergence,
)
from extensions.trl.evaluation.estimates import clustered_mean, clustered_ratio

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

V, T, EOS = 5, 3, 4
PROMPTS = [[1, 2, 3], [2], [0, 0, 3, 1, 2]]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gpt2(seed, width=8, vocab_size=V, **settings):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_embd=width,
        n_layer=1,
        n_head=2,
        n_positions=32,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=EOS,
        **settings,
    )
    return transformers.GPT2LMHeadModel(config).double()


def llama(seed):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).double()


@pytest.fixture(scope="module")
def student():
    return gpt2(0)


@pytest.fixture(scope="module")
def teacher():
    return gpt2(1, width=12)


class Enumerated:
    """The two models' laws of the next token at every prefix, each from a forward without padding."""

    def __init__(self, student, teacher, prompt):
        self.models, self.prompt, self.laws = (student, teacher), list(prompt), {}

    @torch.no_grad()
    def __call__(self, prefix):
        """log q and log p of the next token, (V,) each."""
        if prefix not in self.laws:
            ids = torch.tensor([self.prompt + list(prefix)])
            modes = [m.training for m in self.models]
            laws = [m.eval()(input_ids=ids).logits[0, -1].log_softmax(-1) for m in self.models]
            for m, mode in zip(self.models, modes, strict=True):
                m.train(mode)
            self.laws[prefix] = laws
        return self.laws[prefix]

    def prefixes(self, who):
        """All prefixes that have not ended, with their probabilities by student (0) or teacher (1)."""
        layer = {(): 1.0}
        for _ in range(T):
            yield from layer.items()
            layer = {
                (*prefix, token): chance * self(prefix)[who][token].exp().item()
                for prefix, chance in layer.items()
                for token in range(V)
                if token != EOS
            }

    def expected(self, who, value):
        """Sum over positions of the expectation of ``value(log q, log p)`` at prefixes of ``who``, (T,)."""
        by_position = torch.zeros(T, dtype=torch.float64)
        for prefix, chance in self.prefixes(who):
            by_position[len(prefix)] += chance * value(*self(prefix))
        return by_position.cumsum(0)


def forward_kl(log_q, log_p):
    return (log_p.exp() * (log_p - log_q)).sum()


def reverse_kl(log_q, log_p):
    return (log_q.exp() * (log_q - log_p)).sum()


def test_every_score_is_that_of_the_unpadded_prefix(student, teacher):
    completions = [[1, 0, 4], [3], [2, 2]]
    scores = score_completions(student, teacher, PROMPTS, completions, batch_size=2)
    assert scores.mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    for row, (prompt, completion) in enumerate(zip(PROMPTS, completions, strict=True)):
        exact = Enumerated(student, teacher, prompt)
        for t in range(3):
            found = {
                name: getattr(scores, name)[row, t].item()
                for name in (
                    "log_q",
                    "log_p",
                    "reverse_kl",
                    "forward_kl",
                    "student_entropy",
                    "teacher_entropy",
                )
            }
            if t >= len(completion):
                assert set(found.values()) == {0.0}
                continue
            log_q, log_p = exact(tuple(completion[:t]))
            assert found == pytest.approx(
                {
                    "log_q": log_q[completion[t]].item(),
                    "log_p": log_p[completion[t]].item(),
                    "reverse_kl": reverse_kl(log_q, log_p).item(),
                    "forward_kl": forward_kl(log_q, log_p).item(),
                    "student_entropy": -(log_q.exp() * log_q).sum().item(),
                    "teacher_entropy": -(log_p.exp() * log_p).sum().item(),
                },
                abs=1e-12,
            )


@pytest.mark.parametrize("make", [gpt2, llama])
def test_padding_and_batches_change_nothing(make):
    q, p = make(0).float(), make(1).float()
    completions = [[1, 0, 4], [3], [2, 2]]
    together = score_completions(q, p, PROMPTS, completions)
    for row in range(3):
        alone = score_completions(q, p, PROMPTS[row : row + 1], completions[row : row + 1])
        width = alone.mask.shape[1]
        for name in ("log_q", "log_p", "reverse_kl", "forward_kl", "student_entropy"):
            ours, theirs = getattr(together, name)[row, :width], getattr(alone, name)[0]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_slices_of_rows_change_nothing(student, teacher, monkeypatch):
    completions = [[1, 0, 4], [3], [2, 2]]
    whole = score_completions(student, teacher, PROMPTS, completions)
    log_probs = completion_log_probs(student, PROMPTS, completions)
    monkeypatch.setattr("extensions.trl.evaluation.scoring.SLICE", 2 * V)
    sliced = score_completions(student, teacher, PROMPTS, completions)
    torch.testing.assert_close(sliced.reverse_kl, whole.reverse_kl, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        completion_log_probs(student, PROMPTS, completions), log_probs, rtol=0, atol=1e-14
    )
    torch.testing.assert_close(whole.log_q.sum(-1), log_probs, rtol=0, atol=1e-12)


def test_no_more_logits_are_made_at_a_time_than_there_is_room_for(student, teacher, monkeypatch):
    completions = [[1, 0, 4], [3], [2, 2]]
    whole = score_completions(student, teacher, PROMPTS, completions)
    log_probs = completion_log_probs(student, PROMPTS, completions)
    monkeypatch.setattr("extensions.trl.evaluation.scoring.LOGITS", 2 * V * 4)
    shapes = []
    hook = student.register_forward_hook(lambda _model, _args, out: shapes.append(tuple(out.logits.shape)))
    parts = score_completions(student, teacher, PROMPTS, completions)
    sums = completion_log_probs(student, PROMPTS, completions)
    hook.remove()
    assert shapes == [(2, 4, V), (1, 3, V)] * 2
    torch.testing.assert_close(parts.reverse_kl, whole.reverse_kl, rtol=0, atol=1e-12)
    torch.testing.assert_close(sums, log_probs, rtol=0, atol=1e-12)


def test_a_token_that_one_model_rules_out():
    class Ruled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, input_ids, attention_mask, position_ids):
            output = self.inner(input_ids, attention_mask=attention_mask, position_ids=position_ids)
            output.logits[..., 2] = -math.inf
            return output

    q, p = gpt2(0), gpt2(1)
    scores = score_completions(Ruled(q), p, [[1]], [[0]])
    log_q, log_p = Enumerated(q, p, [1])(())
    kept = [0, 1, 3, 4]
    log_q = log_q[kept].log_softmax(-1)
    assert scores.reverse_kl.item() == pytest.approx((log_q.exp() * (log_q - log_p[kept])).sum().item())
    assert scores.forward_kl.item() == math.inf


@pytest.mark.parametrize("who", [0, 1])
def test_samples_have_the_models_law_whatever_its_generation_config_says(who):
    student, teacher = gpt2(0), gpt2(1, width=12)
    model = (student, teacher)[who]
    told = model.generation_config
    told.min_p, told.top_k, told.repetition_penalty, told.temperature = 0.5, 1, 5.0, 0.1
    n = 4000
    samples = sample_completions(model, [PROMPTS[0]], T, seed=3, samples_per_prompt=n, batch_size=n)
    assert told.min_p == 0.5
    assert model.generation_config is told
    exact = Enumerated(student, teacher, PROMPTS[0])
    chi2, total = 0.0, 0.0
    for tokens in itertools.product(range(V), repeat=T):
        if EOS in tokens:
            tokens = tokens[: tokens.index(EOS) + 1]
        chance = math.exp(sum(exact(tokens[:t])[who][token].item() for t, token in enumerate(tokens)))
        # Each ended sequence comes up once for every way to fill the rest.
        share = V ** -(T - len(tokens))
        chi2 += share * (samples.count(list(tokens)) - n * chance) ** 2 / (n * chance)
        total += share * chance
    outcomes = sum((V - 1) ** t for t in range(T - 1)) + (V - 1) ** (T - 1) * V  # 1 + 4 + 16 * 5
    assert total == pytest.approx(1)
    assert chi2 < (outcomes - 1) + 4 * math.sqrt(2 * (outcomes - 1))


def test_a_seed_gives_the_same_samples_and_touches_no_generator(student):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = sample_completions(student, PROMPTS, T, seed=5, samples_per_prompt=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert sample_completions(student, PROMPTS, T, seed=5, samples_per_prompt=4) == first
    assert sample_completions(student, PROMPTS, T, seed=6, samples_per_prompt=4) != first
    assert len(first) == 12


def test_temperature_zero_takes_the_likeliest_token(student, teacher):
    prefix = []
    exact = Enumerated(student, teacher, PROMPTS[2])
    while len(prefix) < T and EOS not in prefix:
        prefix.append(exact(tuple(prefix))[0].argmax().item())
    # Left-padded beside a longer prompt, too.
    found = sample_completions(student, [PROMPTS[2], [1] * 9], T, seed=0, temperature=0)
    assert found[0] == prefix


def test_modes_are_left_as_they_were():
    q, p = gpt2(0, resid_pdrop=0.5), gpt2(1)
    q.train()
    q.transformer.h[0].eval()
    p.eval()
    modes = [m.training for m in q.modules()]
    one = sequence_divergence(q, p, PROMPTS, T, samples_per_prompt=4)
    assert [m.training for m in q.modules()] == modes
    assert not p.training
    assert one == sequence_divergence(q.eval(), p, PROMPTS, T, samples_per_prompt=4)


def test_divergences_are_those_of_all_sequences(student, teacher):
    """The prompt is repeated, so that the standard error is that of the sampling alone."""
    n = 3000
    found = sequence_divergence(student, teacher, [PROMPTS[0]] * n, T, batch_size=n, seed=1)
    exact = Enumerated(student, teacher, PROMPTS[0])
    lengths = [exact.expected(who, lambda q, p: 1.0)[-1].item() for who in (0, 1)]
    kls = [exact.expected(0, reverse_kl)[-1].item(), exact.expected(1, forward_kl)[-1].item()]
    # The chain rule, without which the sum above would mean nothing.
    by_sequence = 0.0
    for tokens in itertools.product(range(V), repeat=T):
        ended = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
        log_q, log_p = (
            sum(exact(ended[:t])[who][token].item() for t, token in enumerate(ended)) for who in (0, 1)
        )
        by_sequence += V ** -(T - len(ended)) * math.exp(log_q) * (log_q - log_p)
    assert kls[0] == pytest.approx(by_sequence)
    expected = {
        "reverse_kl": kls[0],
        "forward_kl": kls[1],
        "reverse_kl_per_token": kls[0] / lengths[0],
        "forward_kl_per_token": kls[1] / lengths[1],
        "student_entropy": exact.expected(0, lambda q, p: -(q.exp() * q).sum())[-1].item(),
        "teacher_entropy": exact.expected(1, lambda q, p: -(p.exp() * p).sum())[-1].item(),
        "student_length": lengths[0],
        "teacher_length": lengths[1],
    }
    flat = found.as_dict()
    for name, value in expected.items():
        error = flat[f"{name}_se"]
        assert 0 < error < 0.05 * abs(value), name
        assert abs(flat[name] - value) < 4 * error, name


def test_exposure_bias_is_that_of_all_sequences(student, teacher):
    n = 3000
    found = exposure_bias(
        student, teacher, [PROMPTS[0]] * n, T + 2, samples_per_prompt=1, batch_size=n, eos_token_id=EOS
    )
    exact = Enumerated(student, teacher, PROMPTS[0])
    regret, forced = exact.expected(0, forward_kl), exact.expected(1, forward_kl)
    excess = (regret - forced) / forced * 100
    # The first position is the prompt's, with nothing sampled: exact, and no excess.
    assert found.regret[0].item() == pytest.approx(forward_kl(*exact(())).item(), abs=1e-12)
    assert found.excess[0].item() == pytest.approx(0, abs=1e-10)
    assert abs(excess[-1].item()) > 0.5
    for position in range(1, T):
        for name, curve in (("regret", regret), ("teacher_forced", forced), ("excess", excess)):
            error = getattr(found, f"{name}_se")[position].item()
            assert error > 0
            assert abs(getattr(found, name)[position] - curve[position]) < 4 * error, (name, position)
    assert found.excess_se[T - 1] < 0.3 * abs(excess[-1])


def test_positions_after_the_end_add_nothing(student, teacher):
    """Every token ends an answer, so that only the first position counts."""
    found = exposure_bias(student, teacher, PROMPTS, T, samples_per_prompt=2, eos_token_id=list(range(V)))
    assert torch.equal(found.regret, found.regret[:1].expand(T))
    assert torch.equal(found.excess, torch.zeros(T, dtype=torch.float64))
    divergence = sequence_divergence(student, teacher, PROMPTS, T, eos_token_id=list(range(V)))
    assert divergence.student_length.value == divergence.teacher_length.value == 1
    kls = [reverse_kl(*Enumerated(student, teacher, prompt)(())).item() for prompt in PROMPTS]
    assert divergence.reverse_kl.value == pytest.approx(sum(kls) / 3)
    spread = torch.tensor(kls, dtype=torch.float64).std().item()
    assert divergence.reverse_kl.standard_error == pytest.approx(spread / math.sqrt(3))


def test_equal_models_have_no_divergence_and_no_excess(student):
    found = sequence_divergence(student, student, PROMPTS, T, samples_per_prompt=3)
    assert found.reverse_kl.value == found.forward_kl.value == 0.0
    assert exposure_bias(student, student, PROMPTS, T, samples_per_prompt=3).excess.isnan().all()


def test_one_prompt_has_no_standard_error(student, teacher):
    found = sequence_divergence(student, teacher, PROMPTS[:1], T, samples_per_prompt=3)
    assert math.isnan(found.reverse_kl.standard_error)
    assert found.reverse_kl.value > 0


def test_standard_errors_are_the_spread_of_estimates():
    """Answers to a prompt share its effect: errors that took them for independent would be too small."""
    torch.manual_seed(0)
    studies, prompts, answers = 2000, 30, 8
    effect = torch.randn(prompts, 1, studies, dtype=torch.float64)
    above = 3 + effect + torch.randn(prompts, answers, studies, dtype=torch.float64)
    below = 5 + 0.5 * effect + torch.randn(prompts, answers, studies, dtype=torch.float64)
    for values, errors in (clustered_mean(above), clustered_ratio(above, below)):
        assert errors.mean() == pytest.approx(values.std().item(), rel=0.05)
    assert clustered_ratio(above, below)[0].mean() == pytest.approx(0.6, abs=0.01)


def test_bad_prompts_are_refused(student, teacher):
    with pytest.raises(ValueError, match="no prompts"):
        sample_completions(student, [], T, seed=0)
    with pytest.raises(ValueError, match="Prompt 1 has no tokens"):
        sample_completions(student, [[1], []], T, seed=0)
    with pytest.raises(ValueError, match=r"Prompt 0 has 30 tokens.*32 positions"):
        sample_completions(student, [[1] * 30], T, seed=0)
    with pytest.raises(ValueError, match="3 prompts and 1 completions"):
        score_completions(student, teacher, PROMPTS, [[1]])
    with pytest.raises(ValueError, match="Prompt 1 has no tokens"):
        score_completions(student, teacher, [[1], []], [[1], [1]])


def test_a_vocabulary_may_be_padded_if_told(student, teacher):
    """The teacher gets three more tokens, which it likes best."""
    padded = gpt2(0, width=12, vocab_size=V + 3)
    state = teacher.state_dict()
    table = torch.cat([state["lm_head.weight"], 4 * state["lm_head.weight"][:3]])
    padded.load_state_dict({**state, "lm_head.weight": table, "transformer.wte.weight": table})
    completions = [[1, 0, 4], [3], [2, 2]]
    with pytest.raises(ValueError, match=r"5 tokens.*of 8.*vocab_size"):
        score_completions(student, padded, PROMPTS, completions)
    ours = score_completions(student, padded, PROMPTS, completions, vocab_size=V)
    theirs = score_completions(student, teacher, PROMPTS, completions)
    for name, value in vars(theirs).items():
        torch.testing.assert_close(getattr(ours, name), value, rtol=0, atol=1e-12)

    def drawn(model, **settings):
        return sample_completions(model, PROMPTS * 20, T, seed=0, eos_token_id=EOS, **settings)

    assert max(max(ids) for ids in drawn(padded)) >= V
    assert max(max(ids) for ids in drawn(padded, vocab_size=V)) < V
    assert drawn(padded, vocab_size=V, temperature=0) == drawn(teacher, temperature=0)
    # The student's answers are the same, the teacher's are of the same law.
    settings = {"eos_token_id": EOS, "samples_per_prompt": 200, "batch_size": 200}
    for q, p in ((student, teacher), (student, padded)):
        settings["vocab_size"] = V
        divergence, exposure = (f(q, p, PROMPTS, T, **settings) for f in (sequence_divergence, exposure_bias))
        if p is teacher:
            before, exposed = divergence, exposure
    assert divergence.reverse_kl.value == pytest.approx(before.reverse_kl.value, abs=1e-12)
    assert divergence.forward_kl.value == pytest.approx(before.forward_kl.value, rel=0.1)
    torch.testing.assert_close(exposure.regret, exposed.regret)
    torch.testing.assert_close(exposure.teacher_forced, exposed.teacher_forced, rtol=0.1, atol=0)


def test_adapters_and_compiled_models_are_looked_through(teacher):
    peft = pytest.importorskip("peft")
    student = gpt2(0)
    plain = score_completions(student, teacher, PROMPTS, [[1, 2]] * 3).log_q
    samples = sample_completions(student, PROMPTS, T, seed=0)
    adapted = peft.get_peft_model(
        student, peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    )
    adapted.generation_config.min_p = 0.9
    for wrapped in (adapted, torch.compile(adapted, backend="eager")):
        torch.testing.assert_close(
            score_completions(wrapped, teacher, PROMPTS, [[1, 2]] * 3).log_q, plain, rtol=0, atol=1e-12
        )
    assert sample_completions(adapted, PROMPTS, T, seed=0) == samples
    assert adapted.generation_config.min_p == 0.9


def word_tokenizer(words="a b c d"):
    vocabulary = {word: i for i, word in enumerate(words.split())} | {"</s>": EOS}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}d"
    return tokenizer


def test_choices_are_weighed_by_all_their_tokens(student, teacher):
    tokenizer = word_tokenizer()
    prompts, choices = ["b c d", "c"], ["a", "b c", "d d d"]
    found = choice_probabilities(student, tokenizer, prompts, choices, batch_size=4)
    for row, prompt in enumerate(prompts):
        exact = Enumerated(student, teacher, tokenizer(prompt)["input_ids"])
        weights = []
        for choice in choices:
            ids = tokenizer(choice)["input_ids"]
            weights.append(math.exp(sum(exact(tuple(ids[:t]))[0][i].item() for t, i in enumerate(ids))))
        expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-12)
        own = choice_probabilities(student, tokenizer, [prompt], [choices])
        torch.testing.assert_close(own[0], expected, rtol=0, atol=1e-12)


def test_choices_of_conversations_and_bad_choices(student):
    tokenizer = word_tokenizer()
    talk = [[{"role": "user", "content": "b c"}]]
    assert torch.equal(
        choice_probabilities(student, tokenizer, talk, ["a", "b"]),
        choice_probabilities(student, tokenizer, ["b c d"], ["a", "b"]),
    )
    for choices, message in (
        ([], "no choices"),
        (["a", ""], "no tokens"),
        ([["a"], ["b"]], "1 prompts and 2 lists"),
    ):
        with pytest.raises(ValueError, match=message):
            choice_probabilities(student, tokenizer, ["b c d"], choices)
    with pytest.raises(ValueError, match="same number of choices"):
        choice_probabilities(student, tokenizer, ["b", "c"], [["a"], ["a", "b"]])


def test_texts_are_the_samples_decoded(student):
    tokenizer = word_tokenizer()
    prompts = ["b c d", "c", "a a d b c"]
    texts = generate_texts(student, tokenizer, prompts, T, seed=4)
    samples = sample_completions(student, PROMPTS, T, seed=4)
    assert texts == [" ".join("abcd"[i] for i in ids if i != EOS) for ids in samples]
    talks = [[{"role": "user", "content": text}] for text in ("b c", "c d")]
    assert generate_texts(student, tokenizer, talks, T, seed=4) == generate_texts(
        student, tokenizer, ["b c d", "c d d"], T, seed=4
    )


def test_the_tokenizers_eos_ends_a_text_too(student):
    tokenizer = word_tokenizer()
    model = gpt2(0)
    model.generation_config.eos_token_id = None
    prompts = ["b c d"] * 20
    assert generate_texts(model, tokenizer, prompts, T, seed=0) == generate_texts(
        student, tokenizer, prompts, T, seed=0
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_with_the_teacher_elsewhere(student, teacher):
    on_gpu = gpt2(0).cuda()
    completions = [[1, 0, 4], [3], [2, 2]]
    ours = score_completions(on_gpu, teacher, PROMPTS, completions)
    theirs = score_completions(student, teacher, PROMPTS, completions)
    for name, value in vars(theirs).items():
        torch.testing.assert_close(getattr(ours, name), value, rtol=0, atol=1e-10)
    torch.manual_seed(0)
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    samples = sample_completions(on_gpu, PROMPTS, T, seed=5, samples_per_prompt=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(), before[1])
    torch.rand(3, device="cuda")
    assert sample_completions(on_gpu, PROMPTS, T, seed=5, samples_per_prompt=4) == samples
    assert sample_completions(on_gpu, PROMPTS, T, seed=6, samples_per_prompt=4) != samples
