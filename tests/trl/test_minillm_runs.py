"""What a run draws, evaluates, logs and writes."""

import math
import os

import pandas as pd
import pytest
import torch
from datasets import DatasetDict
from trl import SFTTrainer

from extensions.trl._host import decoder_of
from extensions.trl.minillm import mixture_trainer as module
from extensions.trl.minillm import teacher_trainer, warm_start

# -- generation ----------------------------------------------------------------------------------------------


def test_padding_to_a_multiple_changes_lengths_and_nothing_else(tmp_path, tiny):
    found, shapes = [], []
    for multiple in (None, 8):
        trainer = tiny.trainer(tmp_path, max_steps=1, pad_to_multiple_of=multiple)
        found.append(tiny.gradients(trainer))
        loss = trainer._compute_loss
        trainer._compute_loss = lambda student, inputs, n, loss=loss: (
            shapes.append((inputs["prompt_ids"].size(1), inputs["completion_ids"].size(1)))
            or loss(student, inputs, n)
        )
        trainer.train()
    tiny.assert_close(found[0][0], found[1][0], 1e-5)
    assert all(length % 8 for length in shapes[0])
    assert not any(length % 8 for length in shapes[1])


def test_generation_kwargs_reach_transformers(tmp_path, tiny):
    forbidden = list(range(8, 40))
    trainer = tiny.trainer(tmp_path, teacher_mix_alpha=0.0, generation_kwargs={"suppress_tokens": forbidden})
    trainer.model.train()
    rollouts = trainer._generate_and_score_completions(list(tiny.prompts(32)))
    said = set(rollouts["completion_ids"].flatten().tolist())
    assert said - {0, 1}
    assert not said & set(forbidden)


@pytest.mark.parametrize("method", ["coin_flip", "mixture"])
def test_answers_are_drawn_in_chunks(tmp_path, tiny, method, monkeypatch):
    sizes = []
    sample = module.sample_mixture

    def recorded(student, teacher, input_ids, *args, **kwargs):
        sizes.append(len(input_ids))
        assert kwargs["method"] == method
        return sample(student, teacher, input_ids, *args, **kwargs)

    monkeypatch.setattr(module, "sample_mixture", recorded)
    tiny.trainer(tmp_path, rollout_chunk_size=7, teacher_mix_method=method, max_steps=1).train()
    assert sizes == [7, 7, 2]


@pytest.mark.parametrize(
    ("baseline", "chunk", "drawn", "numbered"),
    [
        ("none", 64, [[0] * 16], [0] * 16),
        ("leave_one_out", 12, [[0] * 6 + [1] * 6, [0] * 4], [0] * 6 + [1] * 6 + [2] * 4),
    ],
)
def test_half_of_the_answers_have_other_coins_where_a_baseline_is_made_from_the_others(
    tmp_path, tiny, monkeypatch, baseline, chunk, drawn, numbered
):
    """Each chunk has its own coins; what the sampler flips for is what the baseline leaves out."""
    seen, left_out = [], []
    sample, advantages = module.sample_mixture, module.advantages

    def sampled(*args, coin_groups, **kwargs):
        seen.append(coin_groups.tolist())
        return sample(*args, coin_groups=coin_groups, **kwargs)

    def credited(objective, scores, reduce, coins):
        left_out.append(coins.group.tolist())
        return advantages(objective, scores, reduce, coins)

    monkeypatch.setattr(module, "sample_mixture", sampled)
    monkeypatch.setattr(module, "advantages", credited)
    tiny.trainer(tmp_path, rollout_chunk_size=chunk, baseline=baseline, max_steps=1).train()
    assert seen == drawn
    assert left_out == [numbered]


@pytest.mark.parametrize("sharded", [False, True])
def test_chunks_steps_and_processes_have_coins_of_their_own(tmp_path, tiny, sharded, monkeypatch):
    """But for processes that run sharded models together, which flip the same."""
    trainer = tiny.trainer(tmp_path, seed=3)
    monkeypatch.setattr(module.MixtureTrainer, "_sharded", property(lambda self: sharded))

    def flips(process=0, turn=(0, 0), start=0):
        monkeypatch.setattr(type(trainer.accelerator), "process_index", process)
        trainer._turn = turn
        return tuple(torch.rand(64, generator=trainer._coins(start)).tolist())

    assert flips() == flips()
    assert (flips(process=1) == flips()) == sharded
    assert len({flips(), flips(turn=(1, 0)), flips(turn=(0, 1)), flips(start=7)}) == 4


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
@pytest.mark.parametrize("method", ["coin_flip", "mixture"])
def test_what_the_teacher_read_while_answers_were_drawn_is_what_it_reads_at_once(
    tmp_path, tiny, monkeypatch, family, method
):
    """Left padding, chunks of other lengths, answers that end early: scores as of a fresh pass to 1e-5."""
    made = {}
    for drawn_with in (True, False):
        trainer = tiny.trainer(
            tmp_path,
            getattr(tiny, family)(0),
            getattr(tiny, family)(1, layers=2, width=32),
            rollout_chunk_size=7,
            teacher_mix_alpha=0.4,
            teacher_mix_method=method,
            max_steps=1,
            pad_to_multiple_of=8,
        )
        scored = trainer._scored
        hidden = trainer._through_teacher

        def kept(rollouts, trainer=trainer, scored=scored, drawn_with=drawn_with):
            # nothing of the prompts is held
            assert all(x.untyped_storage().nbytes() == x.numel() * x.element_size() for x in trainer._read)
            assert len(trainer._read) == 3
            if not drawn_with:
                trainer._read = []
            made[drawn_with] = scored(rollouts)
            return made[drawn_with]

        def counted(*args, hidden=hidden, drawn_with=drawn_with):
            assert not drawn_with  # the teacher has read all of it by then
            return hidden(*args)

        trainer._scored, trainer._through_teacher = kept, counted
        trainer.train()
        assert not decoder_of(trainer.teacher_model)._forward_hooks
    mask = made[True]["completion_mask"] != 0
    assert not mask.all()
    assert torch.equal(made[True]["completion_ids"], made[False]["completion_ids"])
    assert made[True]["teacher_hidden"].shape == made[False]["teacher_hidden"].shape
    for name in ("teacher_hidden", "old_log_q", "log_p", "log_mix"):
        torch.testing.assert_close(made[True][name][mask], made[False][name][mask], rtol=0, atol=1e-5)


def test_nothing_is_collected_where_nothing_is_kept(tmp_path, tiny, monkeypatch):
    def not_asked_for(model):
        raise AssertionError

    monkeypatch.setattr(teacher_trainer._host, "decoder_of", not_asked_for)
    settings = {"teacher_mix_alpha": 0.4, "max_steps": 1}
    tiny.trainer(tmp_path, cache_teacher_hidden=False, **settings).train()
    with pytest.raises(AssertionError):
        tiny.trainer(tmp_path, **settings).train()


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_answers_are_drawn_without_dropout_and_learned_from_with_it(tmp_path, tiny, alpha):
    said, scores, losses = [], [], []
    for dropout in (False, True):
        model = tiny.gpt2(0, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
        trainer = tiny.trainer(
            tmp_path, model, teacher_mix_alpha=alpha, disable_dropout=not dropout, max_steps=1
        )
        score = trainer._scored
        trainer._scored = lambda rollouts, score=score: (
            said.append(rollouts["completion_ids"]) or scores.append(score(rollouts)) or scores[-1]
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert torch.equal(*said)
    torch.testing.assert_close(scores[0]["old_log_q"], scores[1]["old_log_q"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ({}, [8, 8]),
        ({"rollout_chunk_size": 3}, [3, 3, 3, 3, 3, 1]),
        ({"baseline": "none"}, [16]),
        ({"teacher_mix_method": "mixture"}, None),
        ({"teacher_mix_alpha": 0.0}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("sharded", [False, True])
def test_the_baseline_knows_who_shared_coins(tmp_path, tiny, settings, groups, sharded, monkeypatch):
    """And with whom: processes that run sharded models together flip the same coins."""
    seen = []
    gains = module.advantages
    monkeypatch.setattr(module, "advantages", lambda *args: seen.append(args[3]) or gains(*args))
    settings = {"mode": "modern", "steps_per_generation": 4, **settings}
    trainer = tiny.trainer(tmp_path, max_steps=1, **settings)
    monkeypatch.setattr(module.MixtureTrainer, "_sharded", property(lambda self: sharded))
    trainer.train()
    (coins,) = seen
    assert (coins and coins.group.bincount().tolist()) == groups
    if coins:
        assert coins.reduce == (trainer._sum if sharded else module.alone)


# -- evaluation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prompts", "conversations"])
@pytest.mark.parametrize("shape", ["dataset", "stream", "dict", "dataset dict", "dict of streams"])
def test_evaluation_datasets_of_every_kind(tmp_path, tiny, kind, shape):
    data = getattr(tiny, kind)(6)
    shapes = {
        "dataset": data,
        "stream": data.to_iterable_dataset(),
        "dict": {"a": data, "b": data},
        "dataset dict": DatasetDict({"a": data, "b": data}),
        "dict of streams": {"a": data.to_iterable_dataset(), "b": data},
    }
    trainer = tiny.trainer(
        tmp_path, others={"eval_dataset": shapes[shape]}, eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    names = ["eval"] if shape in ("dataset", "stream") else ["eval_a", "eval_b"]
    logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert all(logged[f"{name}_loss"] > 0.0 for name in names)
    assert logged["eval_minillm/reverse_kl"] > 0.0
    assert "eval_completions/mean_length" in logged


def test_evaluation_before_training_and_between_rollouts_changes_no_step(tmp_path, tiny):
    """Rollouts go on where they were; the answers of evaluation come from the student alone."""
    asked = []
    for start in (False, True):
        trainer = tiny.trainer(
            tmp_path,
            others={"eval_dataset": tiny.prompts(4)},
            eval_strategy="steps",
            eval_steps=1,
            eval_on_start=start,
            max_steps=3,
        )
        mix = trainer._generate_with_teacher
        trainer._generate_with_teacher = lambda prompts, *args, mix=mix: (
            asked.append(len(prompts)) or mix(prompts, *args)
        )
        trainer.train()
        steps = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert steps == ([0] if start else []) + [1, 2, 3]
    assert asked == [16, 16]  # one generation a run


def test_the_evaluation_loss_is_the_reverse_kl_per_token(tmp_path, tiny):
    """By a plain computation from logits, of a student that is its teacher and of one that is not."""
    teacher = tiny.qwen3(0)
    for seed in (0, 1):
        others = {"eval_dataset": tiny.prompts(4)}
        trainer = tiny.trainer(tmp_path, tiny.qwen3(seed), teacher, others=others)
        seen = []
        score = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = lambda rows, score=score, seen=seen: (
            seen.append(score(rows)) or seen[-1]
        )
        loss = trainer.evaluate()["eval_loss"]
        (batch,) = seen
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            log_q, log_p = (
                torch.log_softmax(
                    model(input_ids=ids, attention_mask=mask, position_ids=positions).logits, -1
                )
                for model in (trainer.model, teacher)
            )
        kl = (log_q.exp() * (log_q - log_p)).sum(-1)[:, -batch["completion_ids"].size(1) - 1 : -1]
        keep = batch["completion_mask"] != 0
        assert loss == pytest.approx(kl[keep].mean().item(), rel=1e-4, abs=1e-6)
        assert (loss < 1e-6) == (seed == 0)


# -- what is written -----------------------------------------------------------------------------------------


def test_tags_and_the_paper_are_on_the_model_card(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, save_strategy="steps", save_steps=2)
    assert trainer.model.model_tags == ["trl", "minillm"]
    trainer.train()
    card = (tmp_path / "README.md").read_text()
    for said in ("- minillm", "- trl", trainer._paper["title"], "2306.08543", "gu2024minillm"):
        assert said in card


def test_completions_are_written_down(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, log_completions=True, steps_per_generation=2, max_steps=4)
    trainer.train()
    files = sorted(os.listdir(tmp_path / "completions"))
    assert files == [f"completions_{step:05d}.parquet" for step in (1, 2, 3, 4)]
    table = pd.read_parquet(tmp_path / "completions" / files[0])
    assert list(table.columns) == ["step", "prompt", "completion"]
    assert len(table) == 8  # all answers of the generation
    assert set(table["prompt"]) <= set(tiny.prompts()["prompt"])
    assert table["completion"].str.len().sum() > 0


def test_what_is_logged_is_in_its_range(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, others={"pretraining_dataset": tiny.texts()})
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    names = "reverse_kl single_loss long_loss pt_loss advantage_mean advantage_std reward "
    names += "is_weight_mean is_weight_min ess clip_ratio teacher_token_fraction"
    logged = {name: entry[f"minillm/{name}"] for name in names.split()}
    assert all(math.isfinite(value) for value in logged.values())
    assert logged["reverse_kl"] > 0.0
    assert 0.0 < logged["is_weight_min"] <= logged["is_weight_mean"] <= 1.25
    assert 0.0 < logged["ess"] <= 1.0
    assert 0.0 <= logged["clip_ratio"] <= 1.0
    assert 0.05 < logged["teacher_token_fraction"] < 0.6
    assert {name.split("/")[1] for name in entry if name.startswith("guards/")} == {
        "empty_ratio",
        "short_ratio",
        "repetition",
        "prompt_echo",
        "length_drift",
    }
    assert 0.0 < entry["entropy"] <= math.log(len(tiny.vocabulary))


def test_the_same_seed_gives_the_same_student(tmp_path, tiny):
    ends = []
    for seed in (1, 1, 2):
        trainer = tiny.trainer(tmp_path, others={"pretraining_dataset": tiny.texts()}, seed=seed)
        trainer.train()
        ends.append(tiny.weights(trainer.model))
    assert not tiny.moved(ends[0], ends[1])
    assert tiny.moved(ends[0], ends[2])


def test_the_warm_start_learns_the_answers_and_keeps_the_best(tmp_path, tiny, monkeypatch):
    """The rate is so high that the student gets worse after a while: what is kept is from before."""
    trainers = []

    class Recorded(SFTTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(warm_start, "SFTTrainer", Recorded)
    data = tiny.prompts(16, columns=("prompt", "completion"))
    trainer = tiny.trainer(
        tmp_path,
        data=data,
        others={"eval_dataset": tiny.prompts(24, columns=("prompt", "completion")).select(range(16, 24))},
        warm_start_epochs=6.0,
        warm_start_learning_rate=0.1,
        max_steps=1,
    )
    before = tiny.weights(trainer.model)
    starts = []
    score = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: (
        starts.append(tiny.weights(trainer.model)) or score(rows)
    )
    trainer.train()
    assert tiny.moved(before, starts[0]) == before.keys()
    assert trainer.state.global_step == 1
    (first,) = trainers
    assert first.args.learning_rate == 0.1
    losses = [entry["eval_loss"] for entry in first.state.log_history if "eval_loss" in entry]
    assert len(losses) == 6
    assert min(losses) < losses[-1]
    for name, value in starts[0].items():
        dict(first.model.named_parameters())[name].data.copy_(value)
    assert first.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert trainer.model.model_tags == ["trl", "minillm"]


def test_the_warm_start_has_the_learning_rate_of_the_rest_if_none_is_given(tmp_path, tiny, monkeypatch):
    class Seen(Exception):
        pass

    def stop(**kwargs):
        assert kwargs["args"].learning_rate == 1e-2
        raise Seen

    monkeypatch.setattr(warm_start, "SFTTrainer", stop)
    data = tiny.prompts(16, columns=("prompt", "completion"))
    with pytest.raises(Seen):
        tiny.trainer(tmp_path, data=data, warm_start_epochs=1.0).train()
