"""The ceiling on exact reward, against closed forms and against policies that try to beat it."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from extensions.glasses import HFCausalLM, ModuleAdapter  # noqa: E402
from extensions.glasses.ceiling import ceiling_of, classes_of, reward_ceiling  # noqa: E402

ONE, MARK, BOS = 5, 4, 1


def tiny_llama(seed=0, positions=True):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config)
    if not positions:
        model.model.rotary_emb.inv_freq.zero_()
    return HFCausalLM(model.eval())


def plane():
    """Vectors of two features that are their own states and logits."""
    return ModuleAdapter(lambda emb: emb)


def at(*points):
    """Sequences of one token at these places, (P, 1, 2)."""
    return torch.tensor(points)[:, None]


def runs(lengths):
    return [torch.full((n,), ONE) for n in lengths]


@pytest.mark.parametrize(
    ("classes", "answers", "value", "shares"),
    [
        ([0, 0], "ab", 1 / 2, [1 / 2]),  # a pair n, n + 1
        ([0, 1], "ab", 1, [1, 1]),
        ([0, 0, 0], "aab", 2 / 3, [2 / 3]),
        ([0, 0, 0, 1], "aabc", 3 / 4, [2 / 3, 1]),  # classes count by their sizes
        ([0, 1, 0, 1], "abba", 1 / 2, [1 / 2, 1 / 2]),
        ([0] * 8, "abcdefgh", 1 / 8, [1 / 8]),
        ([3, 3, 7], "xyx", 2 / 3, [1 / 2, 1]),  # numbers need not begin at 0
        ([0, 0], "aa", 1, [1]),  # one state, but one answer as well
    ],
)
def test_closed_forms(classes, answers, value, shares):
    assert ceiling_of(classes, list(answers)) == (pytest.approx(value), pytest.approx(shares))


def test_no_policy_on_classes_is_above_the_ceiling_and_the_best_one_is_at_it():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        classes = torch.randint(3, (12,), generator=generator)
        answers = torch.randint(4, (12,), generator=generator)
        value, _ = ceiling_of(classes.tolist(), answers.tolist())
        policy = torch.rand(3, 4, generator=generator).softmax(-1)
        assert policy[classes, answers].mean() <= value + 1e-6
        counts = torch.zeros(3, 4).index_put((classes, answers), torch.ones(12), accumulate=True)
        best = torch.nn.functional.one_hot(counts.argmax(-1), 4)
        assert best[classes, answers].double().mean().item() == pytest.approx(value)


def test_classes_are_of_those_that_are_alike_each_to_each():
    """0 - 1 - 2 in a chain whose ends are apart: one class of three would make the ceiling too low."""
    places = torch.tensor([0.0, 1.0, 2.0, 0.5])
    assert classes_of(lambda i: (places - places[i]).abs() < 1.5, 4).tolist() == [0, 0, 1, 0]


def test_a_run_with_nothing_before_it_is_one_state_in_bfloat16_whatever_the_weights():
    """Values are equal, so that attention returns them whatever its weights are; only rounding differs."""
    lengths = range(1, 13)
    for seed in range(3):
        model = tiny_llama(seed)
        for criterion in ("bitwise", "snr", "argmax"):
            found = reward_ceiling(model, runs(lengths), [str(n) for n in lengths], criterion=criterion)
            assert found.value == pytest.approx(1 / 12)
            assert found.classes.tolist() == [0] * 12
        skewed = reward_ceiling(model, runs([1, 1, 1, 2]), list("1112"))
        assert skewed.value == pytest.approx(3 / 4)


def test_a_beginning_of_sequence_or_separators_tell_runs_apart():
    lengths = range(4, 12)
    answers = [str(n) for n in lengths]
    for seed in range(3):
        model = tiny_llama(seed)
        begun = [torch.cat((torch.tensor([BOS]), run)) for run in runs(lengths)]
        parted = [torch.cat((run[:3], torch.tensor([MARK]), run[3:])) for run in runs(lengths)]
        assert reward_ceiling(model, begun, answers).value == 1
        assert reward_ceiling(model, parted, answers).value == 1


def test_argmax_bounds_greedy_decoding_and_is_the_number_of_different_answers():
    lengths = range(1, 17)
    model = tiny_llama(3, positions=False)
    prompts = [torch.cat((torch.tensor([BOS]), run)) for run in runs(lengths)]
    found = reward_ceiling(model, prompts, [str(n) for n in lengths], criterion="argmax", dtype="float32")
    said = [int(model.module(prompt[None]).logits[0, -1].argmax()) for prompt in prompts]
    assert found.value == len(set(said)) / len(lengths) < 1
    assert len(found.shares) == len(set(said))


def test_snr_is_the_gap_over_rounding():
    """In bfloat16 1.001 and 1.002 are both 1: 0.001 apart, and 0.0015 of rounding on average."""
    vectors = at([1.001, 0.0], [1.002, 0.0], [1.1, 0.0])
    for threshold, classes in ((1.0, [0, 0, 1]), (0.5, [0, 1, 2]), (1e6, [0, 0, 0])):
        found = reward_ceiling(plane(), vectors, list("abc"), criterion="snr", threshold=threshold)
        assert found.classes.tolist() == classes, threshold
    assert reward_ceiling(plane(), vectors, list("abc")).classes.tolist() == [0, 0, 1]
    assert reward_ceiling(plane(), vectors, list("abc"), dtype="float32").value == 1


def test_equal_states_are_one_though_nothing_is_rounded():
    vectors = at([1.0, 0.0], [1.0, 0.0], [2.0, 0.0])
    assert reward_ceiling(plane(), vectors, list("abc"), criterion="snr").classes.tolist() == [0, 0, 1]


def test_position_says_where_the_answer_is_read():
    vectors = torch.tensor([[[1.0, 0.0], [5.0, 0.0]], [[1.0, 0.0], [0.0, 7.0]]])  # (P, n, d)
    assert reward_ceiling(plane(), vectors, ["a", "b"]).value == 1
    assert reward_ceiling(plane(), vectors, ["a", "b"], position=0).value == 1 / 2


def test_a_batch_that_is_padded_is_as_its_sequences_are():
    lengths = (3, 5, 8)
    prompts = [torch.cat((torch.tensor([BOS]), run)) for run in runs(lengths)]
    mask = torch.tensor([[0] * (8 - n) + [1] * (n + 1) for n in lengths])
    ids = torch.zeros_like(mask)
    ids[mask.bool()] = torch.cat(prompts)
    model = tiny_llama()
    padded = reward_ceiling(
        model, {"input_ids": ids, "attention_mask": mask}, list("abc"), criterion="argmax"
    )
    assert (
        padded.classes.tolist()
        == reward_ceiling(model, prompts, list("abc"), criterion="argmax").classes.tolist()
    )


def test_results_are_written():
    found = reward_ceiling(plane(), at([1.0, 0.0], [1.0, 0.0]), ["a", "b"])
    assert found.as_dict() == {
        "value": 0.5, "classes": [0, 0], "shares": [0.5], "criterion": "bitwise", "dtype": "bfloat16",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"criterion": "near"}, "criterion must be one of bitwise, snr, argmax"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"answers": ["a"]}, "each prompt needs an answer; got 2 prompts and 1 answers"),
        ({"criterion": "snr", "threshold": 0.0}, "threshold must be positive"),
        ({"criterion": "snr", "dtype": "float32"}, "give a reference other than float32"),
    ],
)
def test_bad_input_is_refused(changed, message):
    given = {"answers": ["a", "b"]} | changed
    with pytest.raises(ValueError, match=message):
        reward_ceiling(plane(), at([0.0, 1.0], [1.0, 0.0]), given.pop("answers"), **given)


def test_no_prompts_actions_and_train_mode_are_refused():
    with pytest.raises(ValueError, match="need a class and an answer"):
        ceiling_of([], [])
    actions = ModuleAdapter(lambda emb: emb, discrete=False)
    with pytest.raises(ValueError, match="answers with actions"):
        reward_ceiling(actions, at([0.0, 1.0]), ["a"], criterion="argmax")
    model = tiny_llama()
    model.module.train()
    with pytest.raises(ValueError, match="train mode"):
        reward_ceiling(model, runs((2, 3)), ["2", "3"])


def test_states_that_are_not_finite_are_refused():
    model = ModuleAdapter(lambda emb: emb * 1e5)
    assert reward_ceiling(model, at([1.0, 0.0], [2.0, 0.0]), "ab").value == 1
    with pytest.raises(ValueError, match="states in float16 are not all finite"):
        reward_ceiling(model, at([1.0, 0.0], [2.0, 0.0]), "ab", dtype="float16")


def test_a_batch_goes_in_parts_of_one_size(monkeypatch):
    """Nine prompts that are one: a last part of another size could round them to another state."""
    model, sizes = tiny_llama(), []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda batch: sizes.append(len(batch)) or embed(batch))
    prompts = torch.cat((torch.full((9, 12), ONE), torch.tensor([[BOS] + [ONE] * 11])))
    found = reward_ceiling(model, prompts, [str(n) for n in range(10)], chunk=4)
    assert sizes == [4, 4, 4]
    assert found.classes.tolist() == [0] * 9 + [1]
    with pytest.raises(ValueError, match="chunk must be at least 1 prompt"):
        reward_ceiling(model, prompts, [str(n) for n in range(10)], chunk=0)
    for none in ([], prompts[:0]):
        with pytest.raises(ValueError, match="there are no prompts"):
            reward_ceiling(model, none, [])


def test_a_tuple_of_prompts_is_a_list_of_them():
    prompts = [torch.tensor([1, 5]), torch.tensor([1, 5, 5])]
    model = tiny_llama()
    found, same = (reward_ceiling(model, given, "ab") for given in (tuple(prompts), prompts))
    assert found.value == same.value
    assert torch.equal(found.classes, same.classes)


def test_texts_are_not_ids():
    with pytest.raises(ValueError, match="prompts are token ids"):
        reward_ceiling(None, ["1 1 1"], ["3"])
