"""Rounds: the rejected replies become the trained policy's own; reference and teacher stay what they were."""

import pytest
import torch
from datasets import Dataset

from extensions.trl.qdpo.layers import full_precision, quantized_layers
from extensions.trl.qdpo.pairs import Generation
from extensions.trl.qdpo.replies import greedy_replies
from extensions.trl.qdpo.rounds import NewRound, RoundPairs

ROUNDS = {"num_rounds": 3, "epochs_per_round": 1, "num_train_epochs": 3, "max_steps": -1}


def watch(trainer, seen):
    """Have ``seen`` get the pairs of each round, and what the policy said to each prompt when it began."""
    seen.append((trainer.train_dataset.pairs, None))
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, NewRound))
    make = callback.make

    def watched(number):
        said = greedy_replies(trainer.model, trainer._prompts, max_new_tokens=6, batch_size=4, ends=[1])
        seen.append((make(number), dict(zip(map(str, trainer._prompts), said, strict=True))))
        return seen[-1][0]

    callback.make = watched


def trained(tiny, folder, **settings):
    """A trainer after its rounds, and what was seen of them."""
    trainer, seen = tiny.qdpo(folder, **{**ROUNDS, "learning_rate": 3e-2, **settings}), []
    watch(trainer, seen)
    trainer.train()
    return trainer, seen


@pytest.mark.parametrize("precomputed", [False, True])
def test_each_round_rejects_what_the_policy_says_then(tmp_path, tiny, precomputed):
    trainer, seen = trained(tiny, tmp_path, precompute_ref_log_probs=precomputed)
    assert len(seen) == 3
    first = {str(row["prompt_ids"]): row["rejected_ids"] for row in seen[0][0]}
    chosen = dict(zip(map(str, trainer._prompts), trainer._chosen, strict=True))
    for pairs, said in seen[1:]:
        assert len(pairs)
        for row in pairs:
            prompt = str(row["prompt_ids"])
            assert row["rejected_ids"] == said[prompt] != row["chosen_ids"] == chosen[prompt]
        changed = [row for row in pairs if row["rejected_ids"] != first.get(str(row["prompt_ids"]))]
        assert changed
    assert trainer.train_dataset.number == 2
    assert set(trainer.pair_counts) == {"train", "train of round 2", "train of round 3"}
    assert set(trainer.violation_rates) == set(trainer.pair_counts)


@pytest.mark.parametrize("precomputed", [False, True])
def test_the_reference_stays_the_initial_quantized_model(tmp_path, tiny, precomputed):
    trainer, seen = trained(tiny, tmp_path, precompute_ref_log_probs=precomputed)
    initial = tiny.qdpo(tmp_path / "other")
    assert tiny.moved(tiny.weights(initial.model), tiny.weights(trainer.teacher.initial)) == set()
    row = seen[2][0][0]
    batch = initial.data_collator([row])
    expected = initial.compute_ref_log_probs(initial.ref_model, batch)
    with full_precision(initial.ref_model):
        teacher = initial.compute_ref_log_probs(initial.ref_model, batch)
    scored = {"teacher_chosen_logps": teacher[0], "teacher_rejected_logps": teacher[1]}
    if precomputed:
        scored |= {"ref_chosen_logps": expected[0], "ref_rejected_logps": expected[1]}
    for name, value in scored.items():
        assert row[name] == pytest.approx(value.item(), abs=1e-5)
    assert expected[0].item() != pytest.approx(teacher[0].item(), abs=1e-3)


def test_epochs_of_a_round(tmp_path, tiny):
    settings = {"num_rounds": 2, "epochs_per_round": 2, "num_train_epochs": 4}
    began = []
    trainer = tiny.qdpo(tmp_path, **{**ROUNDS, **settings})
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, NewRound))
    make = callback.make
    callback.make = lambda number: began.append((number, trainer.state.epoch)) or make(number)
    trainer.train()
    assert began == [(1, 2.0)]
    assert trainer.state.epoch == 4.0
    more, seen = trained(tiny, tmp_path, **{**settings, "num_train_epochs": 6})
    assert (len(seen), more.state.epoch) == (2, 6.0)  # the last round goes on


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_read_is_of_the_round(tmp_path, tiny, workers):
    """By processes that load data too."""
    trainer = tiny.qdpo(tmp_path, **ROUNDS, learning_rate=3e-2, dataloader_num_workers=workers)
    seen, read = [], []
    watch(trainer, seen)
    step = trainer.training_step

    def watched(model, inputs, *rest):
        rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        read.append({str(row[mask.bool()].tolist()) for row, mask in rows})
        return step(model, inputs, *rest)

    trainer.training_step = watched
    trainer.train()
    steps = len(read) // 3
    for number, (pairs, _) in enumerate(seen):
        replies = ("chosen_ids", "rejected_ids")
        texts = {str(row["prompt_ids"] + row[name]) for row in pairs for name in replies}
        assert set().union(*read[number * steps : (number + 1) * steps]) <= texts


def test_nothing_left_to_learn_ends_training(tmp_path, tiny, caplog, monkeypatch):
    trainer = tiny.qdpo(tmp_path, **ROUNDS)
    monkeypatch.setattr(Generation, "replies", lambda *_: trainer._chosen)
    trainer.train()
    assert "Round 2 has no pair left to learn from: training ends" in caplog.text
    assert trainer.state.epoch < 2


def test_a_filter_that_leaves_nothing_ends_training_too(tmp_path, tiny, caplog, monkeypatch):
    trainer = tiny.qdpo(tmp_path, **ROUNDS, pair_filter="teacher")
    unlikely = [
        {**row, "chosen_ids": [1] * 6, "rejected_ids": row["chosen_ids"]}
        for row in trainer.train_dataset.pairs
    ]
    kept = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = Dataset.from_list([{name: row[name] for name in kept} for row in unlikely])
    monkeypatch.setattr(trainer, "_rows", lambda *_: rows)
    trainer.train()
    assert "no pair left to learn from" in caplog.text


def rows(numbers):
    return Dataset.from_list([{"prompt_ids": [n]} for n in numbers])


def test_a_round_is_as_long_as_the_first():
    """The schedule of the learning rate is settled before."""
    shown = RoundPairs(rows(range(5)), seed=0)
    assert sorted(shown[i]["prompt_ids"][0] for i in range(len(shown))) == list(range(5))
    shown.show(rows(range(10, 13)), 1)
    few = [shown[i]["prompt_ids"][0] for i in range(len(shown))]
    assert len(few) == 5
    assert set(few) == {10, 11, 12}
    shown.show(rows(range(20, 30)), 2)
    many = [shown[i]["prompt_ids"][0] for i in range(len(shown))]
    assert len(many) == len(set(many)) == 5
    shown.show(rows(range(20, 30)), 3)
    assert many != [shown[i]["prompt_ids"][0] for i in range(len(shown))]


def test_a_round_is_kept_in_a_checkpoint(tmp_path):
    shown = RoundPairs(rows(range(5)), seed=0)
    shown.show(rows(range(10, 13)), 1)
    shown.save(tmp_path, {"pairs/differing": 0.5})
    again = RoundPairs(rows(range(5)), seed=0)
    assert again.load(tmp_path) == {"pairs/differing": 0.5}
    assert again.number == 1
    assert [again[i] for i in range(5)] == [shown[i] for i in range(5)]
    (tmp_path / "round.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no pairs.* Resume from another checkpoint"):
        again.load(tmp_path)


def test_the_scales_are_those_of_the_beginning(tmp_path, tiny):
    trainer, _ = trained(tiny, tmp_path)
    initial = quantized_layers(tiny.qdpo(tmp_path / "other").model)
    for name, layer in quantized_layers(trainer.model).items():
        assert torch.equal(layer.weight_scale, initial[name].weight_scale)
