"""Answers of other distributions than the objective takes them for, and numbers that are none."""

import logging
import math

import pytest
import torch
from torch import nn

from extensions.trl.minillm.checks import warn_without_baseline
from extensions.trl.minillm.sampling import sample_mixture

# -- sampling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.2}],
    ids=lambda settings: next(iter(settings)),
)
def test_cut_distributions(tmp_path, tiny, settings, caplog):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} would cut them. Remove the setting, or set teacher_mix"):
        tiny.trainer(tmp_path, **settings)
    for alpha_zero in (settings, {"generation_kwargs": settings}):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            tiny.trainer(tmp_path, teacher_mix_alpha=0.0, **alpha_zero)
        assert f"{name} draws answers from another distribution" in caplog.text


@pytest.mark.parametrize(
    "generation", [{"num_beams": 2}, {"no_repeat_ngram_size": 6}, {"typical_p": 0.5}, {"do_sample": False}]
)
def test_generation_kwargs_that_cut_distributions(tmp_path, tiny, generation, caplog):
    with caplog.at_level(logging.WARNING):
        tiny.trainer(tmp_path, teacher_mix_alpha=0.0, generation_kwargs=generation)
    assert f"{next(iter(generation))} draws answers from another distribution" in caplog.text


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize(
    "own",
    [
        {"no_repeat_ngram_size": 6},
        {"typical_p": 0.5},
        {"min_p": 0.1},
        {"bad_words_ids": [[9]]},
        {"suppress_tokens": [9]},
        {"min_new_tokens": 3},
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_students_own_generation_config_that_cuts_distributions(tmp_path, tiny, own, alpha, caplog):
    """Transformers merges it into the trainer's, wherever the student writes alone."""
    (name,) = own
    student = tiny.gpt2(0)
    student.generation_config.update(**own)
    with caplog.at_level(logging.WARNING):
        trainer = tiny.trainer(tmp_path, student, teacher_mix_alpha=alpha)
    what = "the evaluation loss is not its reverse KL" if alpha else "the gradient is biased"
    assert f"generation_config sets {name}, which draws" in caplog.text
    assert f"{what}. Clear it before training: model.generation_config.{name} = None" in caplog.text
    merged, _ = trainer.model._prepare_generation_config(trainer.generation_config)
    assert getattr(merged, name) == own[name]  # it is as the warning says


def test_a_students_own_generation_config_that_does_not(tmp_path, tiny, caplog):
    """What the trainer sets itself is not taken from there, nor what changes nothing."""
    student = tiny.gpt2(0)
    student.generation_config.update(
        top_p=0.8, top_k=20, repetition_penalty=1.1, do_sample=False, num_beams=1
    )
    with caplog.at_level(logging.WARNING):
        trainer = tiny.trainer(tmp_path, student, teacher_mix_alpha=0.0)
    assert "generation_config" not in caplog.text
    merged, _ = trainer.model._prepare_generation_config(trainer.generation_config)
    assert (merged.top_p, merged.top_k, merged.repetition_penalty, merged.do_sample) == (1.0, 0, 1.0, True)


def test_generation_kwargs_beside_a_mixture(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"does not use generation_kwargs \(suppress_tokens\). Remove them"):
        tiny.trainer(tmp_path, generation_kwargs={"suppress_tokens": [3]})


def test_temperatures(tmp_path, tiny, caplog):
    with pytest.raises(ValueError, match=r"generation_kwargs sets temperature 0.7.*Set `temperature` alone"):
        tiny.trainer(tmp_path, generation_kwargs={"temperature": 0.7})
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0.0"):
        tiny.trainer(tmp_path, temperature=0.0)
    with caplog.at_level(logging.WARNING):
        tiny.trainer(tmp_path, temperature=0.7)
    assert "both distributions are tempered" in caplog.text
    caplog.clear()
    tiny.trainer(tmp_path)
    assert "tempered" not in caplog.text


def test_a_baseline_without_other_answers(tmp_path, tiny, caplog):
    one = {"mode": "modern", "per_device_train_batch_size": 1}
    with caplog.at_level(logging.WARNING):
        tiny.trainer(tmp_path, **one, steps_per_generation=2)
        tiny.trainer(tmp_path, **one, baseline="none")
        tiny.trainer(tmp_path, **one, long_term=False)
        assert "leave_one_out" not in caplog.text
        tiny.trainer(tmp_path, **one)
    assert caplog.text.count("baseline='leave_one_out' has no effect") == 1


@pytest.mark.parametrize(
    ("answers", "processes", "same_coins", "warns"),
    [(1, 1, False, True), (1, 2, True, True), (1, 2, False, False), (2, 1, True, False)],
)
def test_whose_coins_are_others(caplog, answers, processes, same_coins, warns):
    with caplog.at_level(logging.WARNING):
        warn_without_baseline(answers, processes, same_coins)
    assert bool(caplog.text) == warns


def test_no_length_of_answers(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"max_completion_length must be at least 1, got None"):
        tiny.trainer(tmp_path, max_completion_length=None)


# -- numbers that are not finite -----------------------------------------------------------------------------


class Spoiled(nn.Module):
    """A final norm whose output is NaN once it is told so."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.spoil = norm, False

    def forward(self, hidden):
        return self.norm(hidden) * (math.nan if self.spoil else 1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_nan_stops_training_and_saves_the_batch(tmp_path, tiny, who, alpha):
    models = {"student": tiny.gpt2(0), "teacher": tiny.gpt2(1)}
    spoiled = models[who].transformer.ln_f = Spoiled(models[who].transformer.ln_f)
    trainer = tiny.trainer(
        tmp_path,
        models["student"],
        models["teacher"],
        teacher_mix_alpha=alpha,
        steps_per_generation=1,
        num_iterations=1,
        max_steps=4,
    )
    step = trainer.training_step

    def from_the_third_step_on(*args):
        spoiled.spoil = trainer.state.global_step == 2
        return step(*args)

    trainer.training_step = from_the_third_step_on
    with pytest.raises(FloatingPointError, match=r"step 2.* saved in .*Look for NaN") as caught:
        trainer.train()
    assert trainer.state.global_step == 2
    (path,) = tmp_path.glob("not_finite_*.pt")
    assert str(path) in str(caught.value)
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == 2
    assert len(saved["batch"]["prompt_ids"]) == 4
    asked = trainer.processing_class.batch_decode(saved["batch"]["prompt_ids"], skip_special_tokens=True)
    assert set(asked) <= set(tiny.prompts()["prompt"])


def test_nan_in_the_loss_alone(tmp_path, tiny):
    """Without long-term part and weights no score is looked at: the loss itself is."""
    teacher = tiny.gpt2(1)
    teacher.transformer.ln_f = Spoiled(teacher.transformer.ln_f)
    teacher.transformer.ln_f.spoil = True
    off = {"long_term": False, "importance_weights": "none", "teacher_mix_alpha": 0.0}
    trainer = tiny.trainer(tmp_path, teacher=teacher, **off)
    before = tiny.weights(trainer.model)
    with pytest.raises(FloatingPointError, match=r"The loss is not finite at step 0"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in tiny.weights(trainer.model).items())
    assert list(tmp_path.glob("not_finite_*.pt"))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_nan_on_another_process_stops_this_one(tmp_path, tiny, alpha):
    """After the same chunk: in the next it would wait for the other, which waits to stop with it."""
    trainer = tiny.trainer(tmp_path, teacher_mix_alpha=alpha, rollout_chunk_size=6)
    trainer._sum = lambda values: values + 1.0  # of the other
    with pytest.raises(FloatingPointError, match=r"logits are not finite .on another process.*saved in"):
        trainer.train()
    (path,) = tmp_path.glob("not_finite_*.pt")
    assert len(torch.load(path, weights_only=True)["batch"]["prompt_ids"]) == 6  # of 16


def test_models_that_run_together_sample_to_the_end_before_they_stop(tiny):
    """The process whose logits are NaN takes part in every step, as the others wait for it."""
    student, teacher = tiny.gpt2(0), tiny.gpt2(1)
    teacher.transformer.ln_f = Spoiled(teacher.transformer.ln_f)
    teacher.transformer.ln_f.spoil = True
    ids, steps = torch.ones(2, 3).long(), []
    settings = {"alpha": 0.5, "max_new_tokens": 5, "eos_token_ids": [], "pad_token_id": 0}
    settings |= {"method": "mixture", "attention_mask": torch.ones_like(ids)}
    for synced, expected in ((None, None), (lambda going: steps.append(going) or going, [True] * 5)):
        with pytest.raises(FloatingPointError, match="the teacher's logits are NaN"):
            sample_mixture(student.eval(), teacher.eval(), ids, synced=synced, **settings)
        assert expected is None or steps == expected
