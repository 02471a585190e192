"""From prompts to pairs: whose replies, of which ids, how many, kept where, and how they are labelled."""

import json
import math

import pytest
import torch
from datasets import Dataset

from extensions.trl.evaluation import completion_log_probs, sample_completions
from extensions.trl.qdpo.batches import PairCollator
from extensions.trl.qdpo.layers import full_precision, quantize_model
from extensions.trl.qdpo.pairs import PairCounts, first_divergence
from extensions.trl.qdpo.quantizers import WeightScheme
from extensions.trl.qdpo.replies import greedy_replies

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def greedy(model, prompt, length=6, ends=(1,)):
    """One prompt, one token at a time, without a cache."""
    ids = list(prompt)
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


def policy(tiny, bits=3, **scheme):
    model = tiny.llama(layers=2).eval()
    quantize_model(model, WeightScheme(bits=bits, **scheme))
    return model


def talkative(tiny, **settings):
    """A model of whose replies some end before they are cut."""
    model = tiny.llama(layers=2, **settings)
    with torch.no_grad():
        model.lm_head.weight[1] *= 3.0
    return model


@pytest.mark.parametrize("kind", ["plain", "conversation"])
def test_pairs_are_the_greedy_replies_of_both(tmp_path, tiny, kind):
    """Token for token what each model says, alone and without padding; and nothing is added to it."""
    data = tiny.prompts() if kind == "plain" else tiny.conversations()
    tokens = tiny.tokenizer()
    trainer = tiny.qdpo(tmp_path, talkative(tiny), data, tokens)
    quantized = talkative(tiny).eval()
    quantize_model(quantized, WeightScheme(bits=3))
    expected = []
    for row in data:
        if kind == "plain":
            prompt = tokens(row["prompt"])["input_ids"]
        else:
            prompt = tokens.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        with full_precision(quantized):
            chosen = greedy(quantized, prompt)
        rejected = greedy(quantized, prompt)
        if chosen != rejected:
            expected.append([prompt, chosen, rejected])
    assert [[row[name] for name in IDS] for row in trainer.train_dataset] == expected
    assert trainer.pair_counts == {"train": PairCounts(16, 16 - len(expected), 0)}
    assert 0 < len(expected) < 16
    replies = [reply for row in expected for reply in row[1:]]
    assert {1 in reply for reply in replies} == {True, False}
    assert all(1 not in reply[:-1] for reply in replies)
    assert {len(reply) for reply in replies if 1 not in reply} == {6}


def test_a_row_has_arguments_of_its_own_for_the_chat_template(tmp_path, tiny):
    data = tiny.conversations(6).add_column(
        "chat_template_kwargs", [{"polite": bool(i % 2)} for i in range(6)]
    )
    trainer = tiny.qdpo(tmp_path, data=data, loss_type="sft")
    politely = tiny.vocabulary.index("politely")
    assert [row["prompt_ids"][0] == politely for row in trainer.train_dataset] == [False, True] * 3


def test_batches_hold_the_ids_that_were_generated(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path, talkative(tiny))
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    for half, name in enumerate(("chosen_ids", "rejected_ids")):
        for i, row in enumerate(rows):
            at = half * len(rows) + i
            real = batch["attention_mask"][at].bool()
            assert batch["input_ids"][at][real].tolist() == row["prompt_ids"] + row[name]
            assert batch["input_ids"][at][batch["completion_mask"][at].bool()].tolist() == row[name]


def test_a_reply_ends_where_the_model_says_so_too(tmp_path, tiny):
    """A chat template may end turns with another token than the tokenizer's EOS."""
    model = tiny.llama(layers=2)
    said = [token for first in range(8, 16) for token in greedy(model.eval(), [first])[1:]]
    common = max(set(said) - {1}, key=said.count)
    model.generation_config.eos_token_id = [common]
    trainer = tiny.qdpo(tmp_path, model, loss_type="sft")  # which keeps all
    replies = trainer.train_dataset["chosen_ids"][:]
    assert any(reply[-1] == common for reply in replies)
    assert not any({common, 1} & set(reply[:-1]) for reply in replies)


def test_identical_pairs_are_left_out_and_counted(tmp_path, tiny, caplog):
    caplog.set_level("INFO", logger="extensions.trl.qdpo")
    trainer = tiny.qdpo(tmp_path, bits=4, others={"eval_dataset": tiny.prompts(5)})
    counts = trainer.pair_counts["train"]
    assert len(trainer.train_dataset) == counts.differing == counts.prompts - counts.identical
    assert 0 < counts.identical < 16
    assert all(row["chosen_ids"] != row["rejected_ids"] for row in trainer.train_dataset)
    assert len(trainer.eval_dataset) == trainer.pair_counts["eval"].prompts == 5
    assert f"train: {counts.differing} of 16 prompts have replies that differ" in caplog.text
    both = tiny.qdpo(tmp_path, bits=4, loss_type=["sigmoid", "kd"])
    assert len(both.train_dataset) == 16


def test_nothing_but_identical_pairs(tmp_path, tiny, caplog):
    trainer = tiny.qdpo(tmp_path, tiny.qwen3(), bits=8)
    assert trainer.pair_counts["train"] == PairCounts(16, 16, 0)
    before = tiny.weights(trainer.model)
    result = trainer.train()
    assert result.global_step == 0
    assert "All 16 prompts have the same reply" in caplog.text
    assert "max_new_tokens" in caplog.text
    assert tiny.moved(before, tiny.weights(trainer.model)) == set()


@pytest.mark.parametrize("window", [None, 1, 2])
def test_the_share_of_wrong_labels(tmp_path, tiny, window):
    """A label is of whole replies, whatever the losses count."""
    trainer = tiny.qdpo(tmp_path, divergence_window=window)
    teacher = tiny.llama(layers=2).eval()
    wrong = 0
    for row in trainer.train_dataset:
        first = first_divergence(row["chosen_ids"], row["rejected_ids"])
        last = None if window is None else first + window

        def margin(row, first, last):
            chosen, rejected = (
                completion_log_probs(
                    teacher, [row["prompt_ids"] + row[name][:first]], [row[name][first:last]]
                )
                for name in IDS[1:]
            )
            return float(chosen - rejected)

        wrong += margin(row, first, None) < 0
        assert row["teacher_chosen_logps"] - row["teacher_rejected_logps"] == pytest.approx(
            margin(row, first, last), abs=1e-5
        )
    assert trainer.violation_rates["train"] == pytest.approx(wrong / len(trainer.train_dataset))
    assert wrong > 0


@pytest.mark.parametrize("window", [None, 1])
def test_pairs_with_a_wrong_label_can_be_left_out(tmp_path, tiny, window):
    whole = tiny.qdpo(tmp_path)
    held_out = {"eval_dataset": tiny.prompts()}
    trainer = tiny.qdpo(tmp_path, pair_filter="teacher", divergence_window=window, others=held_out)
    right = [r for r in whole.train_dataset if r["teacher_chosen_logps"] >= r["teacher_rejected_logps"]]
    assert trainer.train_dataset["rejected_ids"][:] == [r["rejected_ids"] for r in right]
    assert 0 < len(right) < len(whole.train_dataset)
    assert trainer.violation_rates["train"] == whole.violation_rates["train"]
    assert len(trainer.eval_dataset) == 16


def test_shuffled_labels(tmp_path, tiny):
    plain = list(tiny.qdpo(tmp_path).train_dataset)
    shuffled = list(tiny.qdpo(tmp_path, shuffle_labels=True).train_dataset)
    swapped = [a["chosen_ids"] != b["chosen_ids"] for a, b in zip(plain, shuffled, strict=True)]
    assert sum(swapped) == len(plain) // 2
    for one, other, is_swapped in zip(plain, shuffled, swapped, strict=True):
        names = ("rejected", "chosen") if is_swapped else ("chosen", "rejected")
        assert other["prompt_ids"] == one["prompt_ids"]
        assert [other["chosen_ids"], other["rejected_ids"]] == [one[f"{name}_ids"] for name in names]
        assert other["teacher_chosen_logps"] == pytest.approx(one[f"teacher_{names[0]}_logps"], abs=1e-5)
    again = list(tiny.qdpo(tmp_path, shuffle_labels=True).train_dataset)
    assert again == shuffled
    assert list(tiny.qdpo(tmp_path, shuffle_labels=True, seed=1).train_dataset) != shuffled


@pytest.mark.parametrize("bits", [4, 8])
def test_anchors(tmp_path, tiny, bits):
    """The policy's second choice where its first was the least certain, then on as it would."""
    trainer = tiny.qdpo(tmp_path, bits=bits, anchor_fraction=1.0)
    plain = tiny.qdpo(tmp_path, bits=bits)
    counts = trainer.pair_counts["train"]
    assert counts.anchors == counts.identical > 0
    assert len(trainer.train_dataset) == 16
    usual = [[row[name] for name in IDS] for row in plain.train_dataset]
    found = [row for row in trainer.train_dataset if [row[name] for name in IDS] not in usual]
    assert len(found) == counts.anchors
    model = policy(tiny, bits)
    for row in found:
        prompt, chosen = row["prompt_ids"], row["chosen_ids"]
        with torch.no_grad():
            laws = model(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1]
        (best, second), tokens = (part.unbind(-1) for part in laws.topk(2, dim=-1))
        assert tokens[0].tolist() == chosen
        at = int((best - second).argmin())
        start = [*chosen[:at], int(tokens[1][at])]
        rest = [] if start[-1] == 1 else greedy(model, prompt + start, 6 - len(start))
        assert row["rejected_ids"] == start + rest


def test_a_share_of_anchors(tmp_path, tiny):
    counts = tiny.qdpo(tmp_path, bits=8, anchor_fraction=0.5).pair_counts["train"]
    assert counts.anchors == round(counts.identical / 2)


def test_the_window_of_a_batch():
    rows = [
        {"prompt_ids": [5], "chosen_ids": [6, 7, 8, 9], "rejected_ids": [6, 7, 3]},
        {"prompt_ids": [5, 6], "chosen_ids": [6], "rejected_ids": [6, 7]},
        {"prompt_ids": [5], "chosen_ids": [6, 7], "rejected_ids": [6, 7]},
    ]
    batch = PairCollator(0, divergence_window=1)(rows)
    assert batch["completion_mask"].tolist() == [
        *([0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]),
        *([0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]),
    ]
    assert batch["reply_mask"].sum(1).tolist() == [4, 1, 2, 3, 2, 2]
    cut = PairCollator(0, max_length=4, truncation_mode="keep_end", divergence_window=1)(rows[:1])
    assert cut["input_ids"].tolist() == [[6, 7, 8, 9], [5, 6, 7, 3]]
    assert cut["completion_mask"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


def test_where_replies_diverge():
    assert first_divergence([1, 2, 3], [1, 2, 4]) == 2
    assert first_divergence([1, 2], [1, 2, 4]) == 2
    assert first_divergence([3], [4]) == 0
    assert first_divergence([1, 2], [1, 2]) is None
    assert first_divergence([], []) is None


# -- kept replies --------------------------------------------------------------------------------------------


def folders(path):
    return {folder.name for folder in (path / "pairs").iterdir()}


def test_runs_of_one_folder_share_only_what_is_the_same(tmp_path, tiny, monkeypatch):
    """Another number of bits, of weights, activations or keys, other prompts or lengths: other replies."""
    said = []
    generate = sample_completions

    def counted(model, prompts, *args, **kwargs):
        said.append(len(prompts))
        return generate(model, prompts, *args, **kwargs)

    monkeypatch.setattr("extensions.trl.qdpo.replies.sample_completions", counted)
    first = list(tiny.qdpo(tmp_path).train_dataset)
    assert said == [16, 16]
    assert list(tiny.qdpo(tmp_path).train_dataset) == first
    assert said == [16, 16]
    known = folders(tmp_path)
    for settings, new in (
        ({"bits": 2}, 1),
        ({"clip": "mse"}, 1),
        ({"group_size": 8}, 1),
        ({"symmetric": False}, 1),
        ({"kv_bits": 2}, 1),
        ({"activation_bits": 2}, 1),
        ({"modules_to_not_quantize": ["down_proj"]}, 1),
        ({"max_new_tokens": 5}, 2),
        ({"data": tiny.prompts(15)}, 2),
        ({"model": tiny.llama(layers=2, seed=5)}, 2),
    ):
        other = tiny.qdpo(tmp_path, **settings)
        assert len(folders(tmp_path) - known) == new, settings
        ours = [row["rejected_ids"] for row in other.train_dataset]
        assert "data" in settings or ours != [row["rejected_ids"] for row in first], settings
        known = folders(tmp_path)


@pytest.mark.parametrize("settings", [{"bits": 2}, {"kv_bits": 2}, {"divergence_window": 1}])
def test_reference_log_probabilities_are_not_those_of_another_quantizer(tmp_path, tiny, settings):
    """Whose latent weights are the same, on pairs that are the same and lie in a file."""
    rows = [{"prompt_ids": [9, 12], "chosen_ids": [30, 31, 32], "rejected_ids": [30, 34]}] * 4
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    found = []
    for others in ({}, settings, {}):
        data = Dataset.load_from_disk(str(tmp_path / "data"))
        trainer = tiny.qdpo(tmp_path, data=data, precompute_ref_log_probs=True, **others)
        trainer.train()
        found.append(trainer.train_dataset["ref_chosen_logps"][:])
        assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found[0] == found[2]
    assert abs(found[0][0] - found[1][0]) > 1e-3


def test_interrupted_generation_goes_on(tmp_path, tiny, monkeypatch):
    prompts = [[8 + i % 30, 8 + i // 30] for i in range(70)]
    settings = {"max_new_tokens": 4, "batch_size": 2, "ends": [1], "folder": tmp_path / "kept"}
    model = policy(tiny)
    whole = greedy_replies(model, prompts, **settings)
    shards = sorted((tmp_path / "kept").iterdir())
    assert len(shards) == 5
    assert whole == greedy_replies(model, prompts, **{**settings, "folder": None})
    shards[3].unlink()
    said = []
    generate = sample_completions

    def counted(model, rows, *args, **kwargs):
        said.append(rows)
        return generate(model, rows, *args, **kwargs)

    monkeypatch.setattr("extensions.trl.qdpo.replies.sample_completions", counted)
    assert greedy_replies(model, prompts, **settings) == whole
    assert [len(rows) for rows in said] == [16]
    assert json.loads(shards[3].read_text()) == [whole[prompts.index(row)] for row in said[0]]


def test_a_shard_that_was_not_finished_is_not_read(tmp_path, tiny, monkeypatch):
    """Replies get their name when they are whole."""
    settings = {"max_new_tokens": 4, "batch_size": 2, "ends": [1], "folder": tmp_path}
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        greedy_replies(policy(tiny), [[9]], **settings)
    assert not list(tmp_path.glob("*.json"))


def test_no_folder_for_replies(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path, pairs_dir="")
    assert len(trainer.train_dataset)
    assert not (tmp_path / "pairs").exists()
    tiny.qdpo(tmp_path, pairs_dir=str(tmp_path / "elsewhere"))
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


def test_prompts_that_fill_the_length_are_left_out(tmp_path, tiny):
    data = tiny.prompts()
    trainer = tiny.qdpo(tmp_path, data=data, max_length=4)
    lengths = [len(text.split()) for text in data["prompt"]]
    assert trainer.pair_counts["train"].prompts == sum(length < 4 for length in lengths) < 16


def test_ready_pairs_of_ids_are_taken_as_they_are(tmp_path, tiny):
    rows = [{"prompt_ids": [9], "chosen_ids": [30, 31], "rejected_ids": [34]}] * 4
    trainer = tiny.qdpo(tmp_path, data=Dataset.from_list(rows))
    assert [{name: row[name] for name in IDS} for row in trainer.train_dataset] == rows
    assert trainer.pair_counts == {}
    assert set(trainer.violation_rates) == {"train"}
    trainer.train()
