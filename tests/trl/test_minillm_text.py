"""Plain text for L_PT: a function of the batch's number, written as the student's tokenizer writes."""

import logging

import pytest
import torch
from datasets import Dataset

from extensions.trl.minillm.pretraining import PretrainingText


@pytest.mark.parametrize("stream", [False, True])
def test_texts_are_a_function_of_the_batch_number(tiny, stream):
    t = tiny.tokenizer()

    def source(batch_size=2, rank=0, world_size=1):
        return PretrainingText(
            tiny.texts(11).to_iterable_dataset() if stream else tiny.texts(11),
            t,
            1,
            batch_size,
            6,
            0,
            rank,
            world_size,
        )

    one = source()
    batches = [one.batch(k) for k in range(12)]
    for k in (7, 3, 0, 11):
        assert torch.equal(source().batch(k)["input_ids"], batches[k]["input_ids"])
        assert torch.equal(one.batch(k)["input_ids"], batches[k]["input_ids"])

    # one epoch of 11 texts is each of them once, whatever the batch size and the number of processes
    seen = [row for k in range(11) for row in rows(source(1).batch(k))]
    ids = t(list(tiny.texts(11)["text"]), add_special_tokens=False)["input_ids"]
    assert sorted(seen) == sorted((row + [t.eos_token_id])[:6] for row in ids)
    two = [row for k in range(2) for r in range(2) for row in rows(source(2, r, 2).batch(k))]
    assert two == [row for k in range(2) for row in rows(source(4).batch(k))]


def test_texts_may_be_tokens_already_and_of_no_length(tiny):
    data = Dataset.from_dict({"input_ids": [[5, 6, 7], [8], []]})
    source = PretrainingText(data, tiny.tokenizer(), 1, 3, 6, 0)
    batch = source.batch(0)
    assert batch["input_ids"].shape == (3, 3)
    assert sorted(batch["attention_mask"].sum(1).tolist()) == [2, 2, 3]


def rows(batch):
    """The texts without padding."""
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [ids[mask != 0].tolist() for ids, mask in pairs]


def test_each_pass_over_the_texts_has_an_order_of_its_own(tiny):
    source = PretrainingText(tiny.texts(11), tiny.tokenizer(), 1, 1, 99, 0)
    seen = [rows(source.batch(k))[0] for k in range(33)]
    passes = [seen[:11], seen[11:22], seen[22:]]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert passes[0] != passes[1]
    assert passes[1] != passes[2]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("$A", [8, 9, 1]),  # as GPT-2's
        ("<unk> $A", [2, 8, 9, 1]),  # begins as Llama's do
        ("<unk> $A <eos>", [2, 8, 9, 1]),  # ends with it already
    ],
)
def test_a_text_begins_as_the_tokenizer_begins_it_and_ends_once(tiny, template, expected):
    from tokenizers.processors import TemplateProcessing

    t = tiny.tokenizer()
    special = [("<unk>", 2), ("<eos>", 1)]
    t.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    source = PretrainingText(Dataset.from_dict({"text": ["w0 w1"]}), t, 1, 1, 99, 0)
    assert rows(source.batch(0)) == [expected]


@pytest.mark.parametrize(("ratio", "longest"), [(0.0, 64), (0.5, 32)])
def test_texts_longer_than_a_model_are_cut_with_a_warning(tmp_path, tiny, ratio, longest, caplog):
    """The teacher's positions count where it reads the texts."""
    data = Dataset.from_dict({"text": [" ".join(["w1"] * 100)] * 16})
    others = {"pretraining_dataset": data}
    settings = {"teacher": tiny.gpt2(1, n_positions=32), "others": others, "pretraining_kd_ratio": ratio}
    with caplog.at_level(logging.WARNING):
        trainer = tiny.trainer(tmp_path, **settings)
        trainer.train()
    said = [r.getMessage() for r in caplog.records if "pretraining" in r.getMessage()]
    assert len(said) == 1
    assert said[0].endswith(
        f"is cut after {longest}, and so are others. Set pretraining_max_length={longest}."
    )
    assert trainer.text.batch(0)["input_ids"].size(1) == longest
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        tiny.trainer(tmp_path, **settings, pretraining_max_length=longest).train()
    assert "pretraining" not in caplog.text


def test_the_end_of_the_model_closes_texts_and_answers_where_the_tokenizer_has_none(tmp_path, tiny):
    tokens = tiny.tokenizer(eos_token=None)
    student = tiny.gpt2(0)
    student.generation_config.eos_token_id = 5
    for alpha in (0.0, 0.5):
        trainer = tiny.trainer(
            tmp_path,
            student,
            tokens=tokens,
            teacher_mix_alpha=alpha,
            others={"pretraining_dataset": tiny.texts(), "eval_dataset": tiny.prompts(4)},
        )
        assert trainer.eos_token_ids == [5]
        assert all(row[-1] == 5 for row in rows(trainer.text.batch(0)))
        trainer.train()
        trainer.evaluate()


def test_the_tokenizers_end_closes_texts_where_the_model_has_another(tmp_path, tiny):
    student = tiny.gpt2(0)
    student.generation_config.eos_token_id = [5, 1]
    trainer = tiny.trainer(tmp_path, student, others={"pretraining_dataset": tiny.texts()})
    assert trainer.eos_token_ids == [5, 1]
    assert all(row[-1] == 1 for row in rows(trainer.text.batch(0)))
