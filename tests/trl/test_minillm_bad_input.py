"""Every mistake meets one error that names the fix, before work is lost."""

import copy
import logging
import math

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn

from extensions.trl import MiniLLMConfig, MiniLLMTrainer
from extensions.trl.minillm import teacher as module
from extensions.trl.minillm.objective import Objective

# -- configuration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "papper"}, "mode must be one of paper, reference, modern, got 'papper'"),
        ({"returns": "later"}, "returns must be one of exclusive, inclusive"),
        ({"importance_weights": "all"}, "importance must be one of token, prefix, none"),
        ({"clip": "ppo"}, "clip must be one of paper, reference, policy"),
        ({"baseline": "mean"}, "baseline must be one of none, position, leave_one_out"),
        ({"whiten": "yes"}, "whiten must be one of none, masked, padded"),
        ({"single_step": False, "long_term": False}, "set single_step=True or long_term=True"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\], got 0.0"),
        ({"gamma": 1.01}, r"gamma must be in \(0, 1\], got 1.01"),
        ({"gamma": math.nan}, r"gamma must be in \(0, 1\], got nan"),
        ({"epsilon": -0.1}, "epsilon must be > 0"),
        ({"epsilon": math.nan}, "epsilon must be > 0"),
        ({"importance_cap": -1.0}, "importance_cap must be > 0"),
        ({"reward_clip": -1.0}, "reward_clip must be > 0"),
        ({"reward_scale": 0.0}, "reward_scale must be > 0"),
        ({"reward_scale": math.inf}, "reward_scale must be > 0"),
        ({"normalization": "mean"}, "normalization must be 'token' or 'sequence', got 'mean'"),
        ({"teacher_mix_alpha": 1.0}, r"teacher_mix_alpha must be in \[0, 1\), got 1.0"),
        ({"teacher_mix_alpha": -0.1}, r"teacher_mix_alpha must be in \[0, 1\), got -0.1"),
        ({"teacher_mix_method": "both"}, "teacher_mix_method must be 'coin_flip' or 'mixture', got 'both'"),
        ({"use_vllm": True}, "Set teacher_mix_alpha=0.0 to generate with vLLM, or use_vllm=False"),
        ({"num_iterations": 0}, "num_iterations must be at least 1, got 0"),
        ({"steps_per_generation": 0}, "steps_per_generation .* multiple of gradient_accumulation_steps"),
        (
            {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
            r"steps_per_generation \(3\) must be a multiple of gradient_accumulation_steps \(2\)",
        ),
        ({"rollout_chunk_size": 0}, "rollout_chunk_size must be at least 1, got 0"),
        ({"pretraining_coef": -1.0}, "pretraining_coef must be at least 0, got -1.0"),
        ({"pretraining_coef": math.nan}, "pretraining_coef must be at least 0, got nan"),
        ({"pretraining_kd_ratio": 1.5}, r"pretraining_kd_ratio must be in \[0, 1\], got 1.5"),
        ({"pretraining_batch_size": 0}, "pretraining_batch_size must be at least 1"),
        ({"pretraining_max_length": 1}, "pretraining_max_length at least 2"),
        ({"warm_start_epochs": -1.0}, "warm_start_epochs must be at least 0, got -1.0"),
        ({"beta": 0.5}, "beta=1.0, got beta=0.5. Use TRL's DistillationTrainer"),
    ],
)
def test_values_out_of_range(tmp_path, tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny.config(tmp_path, **settings)


def test_the_objective_checks_the_same_without_a_trainer():
    with pytest.raises(ValueError, match=r"clip must be one of"):
        Objective(clip="none")
    with pytest.raises(ValueError, match=r"epsilon must be > 0, or None to do without, got 0.0"):
        Objective(epsilon=0.0)


def test_zero_means_none_in_a_configuration(tmp_path, tiny):
    objective = tiny.config(tmp_path, epsilon=0.0, reward_clip=0.0, importance_cap=0.0).objective()
    assert objective.epsilon is objective.reward_clip is objective.importance_cap is None


@pytest.mark.parametrize("mode", ["paper", "reference", "modern"])
def test_a_mode_fills_in_what_is_not_given_only(tmp_path, tiny, mode):
    given = tiny.config(tmp_path, mode=mode, gamma=0.5, single_step=False, epsilon=0.0, num_iterations=7)
    assert (given.gamma, given.single_step, given.epsilon, given.num_iterations) == (0.5, False, 0.0, 7)
    filled = {name: value for name, value in vars(given).items() if name in MiniLLMConfig.__annotations__}
    optional = {"warm_start_learning_rate"}
    assert not [name for name, value in filled.items() if value is None and name not in optional]


# -- datasets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("which", ["train", "eval", "one of several"])
def test_a_dataset_without_prompts(tmp_path, tiny, which, stream):
    wrong = tiny.prompts().rename_column("prompt", "question")
    wrong = wrong.to_iterable_dataset() if stream else wrong
    right = tiny.prompts()
    data = wrong if which == "train" else right
    evaluation = {"train": right, "eval": wrong, "one of several": {"a": right, "b": wrong}}[which]
    name = {"train": "train_dataset", "eval": "eval_dataset", "one of several": r"eval_dataset\['b'\]"}
    with pytest.raises(ValueError, match=f"{name[which]} must have a 'prompt' column.*question.*rename"):
        tiny.trainer(tmp_path, data=data, others={"eval_dataset": evaluation})


def test_fewer_prompts_than_one_generation(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"has 15 prompts, fewer than one generation takes .16 = .* Lower"):
        tiny.trainer(tmp_path, data=tiny.prompts(15))
    tiny.trainer(tmp_path, data=tiny.prompts(15), steps_per_generation=3)


def long_prompts(tiny, length=60):
    return Dataset.from_dict({"prompt": [*tiny.prompts(15)["prompt"], " ".join(["w1"] * length)]})


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_prompts_longer_than_a_model_are_found_before_training(tmp_path, tiny, who):
    models = [tiny.gpt2(0), tiny.gpt2(1)]
    models[who == "student"] = tiny.gpt2(2, n_positions=512)
    message = f"A prompt of 60 tokens and an answer of 6 .*the {who}'s 64 positions.*at most 58 tokens"
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, *models, long_prompts(tiny))
    tiny.trainer(tmp_path, *models, long_prompts(tiny, 58))


def test_long_prompts_of_a_stream_are_found_at_their_turn(tmp_path, tiny):
    data = concatenate_datasets([tiny.prompts(16), long_prompts(tiny)])
    trainer = tiny.trainer(tmp_path, data=data.to_iterable_dataset(), shuffle_dataset=False, num_iterations=1)
    trainer.args.max_steps = 8
    with pytest.raises(ValueError, match=r"A prompt of 60 tokens"):
        trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_a_prompt_without_a_token(tmp_path, tiny, alpha):
    data = Dataset.from_dict({"prompt": ["w1", ""] * 8})
    with pytest.raises(ValueError, match=r"A prompt has no token.*Remove it"):
        tiny.trainer(tmp_path, data=data, teacher_mix_alpha=alpha)


@pytest.mark.parametrize("stream", [False, True])
def test_text_without_text(tmp_path, tiny, stream):
    data = tiny.texts().rename_column("text", "content")
    others = {"pretraining_dataset": data.to_iterable_dataset() if stream else data}
    with pytest.raises(ValueError, match=r"must have a 'text' .*it has: content. Rename"):
        tiny.trainer(tmp_path, others=others)


def test_no_text_at_all(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"pretraining_dataset is empty. Leave it out"):
        tiny.trainer(tmp_path, others={"pretraining_dataset": tiny.texts(1).select([])})


@pytest.mark.parametrize("stream", [False, True])
def test_a_warm_start_without_answers(tmp_path, tiny, stream):
    columns = ("prompt", "completion") if stream else ("prompt",)  # a stream has answers but no length
    data = tiny.prompts(columns=columns)
    with pytest.raises(
        ValueError, match=r"warm_start_epochs needs .*'completion' columns.*or set warm_start"
    ):
        tiny.trainer(tmp_path, data=data.to_iterable_dataset() if stream else data, warm_start_epochs=1.0)


# -- models and tokenizers -----------------------------------------------------------------------------------


def test_no_teacher(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"MiniLLM needs a teacher: pass `teacher_model`.*or set"):
        MiniLLMTrainer(tiny.gpt2(0), args=tiny.config(tmp_path), train_dataset=tiny.prompts())


def test_loading_arguments_for_a_loaded_teacher(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"`teacher_model_init_kwargs` are for a teacher given by name"):
        tiny.trainer(tmp_path, teacher_model_init_kwargs={"dtype": "float32"})


@pytest.mark.parametrize("shared", ["model", "embedding"])
def test_a_teacher_that_is_the_student_is_refused_and_left_as_it_was(tmp_path, tiny, shared):
    student = tiny.qwen3(0)
    teacher = student if shared == "model" else tiny.qwen3(1)
    teacher.model.embed_tokens = student.model.embed_tokens
    with pytest.raises(ValueError, match=r"shares parameters with the student.*copy.deepcopy\(model\)"):
        tiny.trainer(tmp_path, student, teacher)
    assert all(p.requires_grad for p in student.parameters())
    trainer = tiny.trainer(tmp_path, student, copy.deepcopy(student))  # what the message says to do
    before = tiny.weights(student)
    trainer.train()
    assert all(not torch.equal(before[name], value) for name, value in tiny.weights(student).items())


def test_a_teacher_that_requires_gradients_is_frozen(tmp_path, tiny):
    teacher = tiny.gpt2(1).train()
    assert all(p.requires_grad for p in teacher.parameters())
    trainer = tiny.trainer(tmp_path, teacher=teacher)
    assert not any(p.requires_grad for p in trainer.teacher_model.parameters())
    assert not trainer.teacher_model.training


def test_no_end_of_sequence(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"has an end-of-sequence token. Set tokenizer.eos_token, or model"):
        tiny.trainer(tmp_path, tiny.gpt2(0, eos_token_id=None), tokens=tiny.tokenizer(eos_token=None))


@pytest.mark.parametrize(("student", "teacher"), [(43, 48), (48, 43)])
def test_vocabularies_of_different_sizes(tmp_path, tiny, student, teacher):
    models = tiny.qwen3(0, vocabulary=student), tiny.qwen3(1, vocabulary=teacher)
    message = f"vocab_size {student} but .* vocab_size {teacher}.*set allow_padded_vocabulary=True"
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, *models)


def test_a_tokenizer_with_more_tokens_than_a_model(tmp_path, tiny):
    models = tiny.qwen3(0, vocabulary=48), tiny.qwen3(1, vocabulary=40)
    with pytest.raises(ValueError, match=r"The tokenizer has 43 tokens, more than the smaller model \(40\)"):
        tiny.trainer(tmp_path, *models, allow_padded_vocabulary=True)


def shifted(tiny):
    """The same words under other numbers."""
    words = tiny.vocabulary
    return tiny.tokenizer([*words[:8], *words[9:], words[8]])


@pytest.mark.parametrize("given", ["argument", "beside the weights"])
def test_a_tokenizer_of_other_numbers(tmp_path, tiny, given):
    teacher, others = tiny.gpt2(1), {}
    if given == "argument":
        others["teacher_processing_class"] = shifted(tiny)
    else:
        teacher.save_pretrained(tmp_path / "teacher")
        shifted(tiny).save_pretrained(tmp_path / "teacher")
        teacher = str(tmp_path / "teacher")
    message = "differs from the student's in 35 of 43 tokens, first in 'w0', which is 8 .*42 for the teacher"
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, teacher=teacher, others=others)


def test_the_same_tokenizer_and_one_that_is_not_there(tmp_path, tiny, caplog):
    tiny.trainer(tmp_path, others={"teacher_processing_class": tiny.tokenizer()})
    tiny.gpt2(1).save_pretrained(tmp_path / "teacher")
    with caplog.at_level(logging.WARNING):
        tiny.trainer(tmp_path, teacher=str(tmp_path / "teacher"))
    assert "Pass `teacher_processing_class` to have it checked" in caplog.text


def test_the_tokenizer_of_a_teacher_from_the_hub_is_looked_for_there(tmp_path, tiny, caplog, monkeypatch):
    """By its name and revision, whether the trainer loads the teacher or it comes loaded."""
    asked = []

    def from_pretrained(name, revision, trust_remote_code):
        asked.append((name, revision))
        if name == "somebody/elsewhere":
            raise OSError
        return shifted(tiny)

    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", from_pretrained)
    teacher = tiny.gpt2(1)
    teacher.name_or_path = "somebody/teacher"  # as from_pretrained of a model leaves it
    with pytest.raises(
        ValueError, match=r"differs from the student's.*pass the student's tokenizer as `teach"
    ):
        tiny.trainer(tmp_path, teacher=teacher)
    tiny.trainer(tmp_path, teacher=teacher, others={"teacher_processing_class": tiny.tokenizer()})
    teacher.name_or_path = "somebody/elsewhere"
    with caplog.at_level(logging.WARNING):
        tiny.trainer(tmp_path, teacher=teacher)
    assert "from somebody/elsewhere (OSError), so it is not compared" in caplog.text
    assert asked == [("somebody/teacher", "main"), ("somebody/elsewhere", "main")]

    loaded = []
    monkeypatch.setattr(
        module, "create_model_from_path", lambda name, **how: loaded.append(how["revision"]) or tiny.gpt2(1)
    )
    for settings in (
        {"teacher_model_revision": "v1"},
        {"teacher_model_revision": "v1", "teacher_model_init_kwargs": {"revision": "v2"}},
    ):
        with pytest.raises(ValueError, match="differs from the student's"):
            tiny.trainer(tmp_path, teacher="somebody/teacher", **settings)
    assert asked[2:] == [("somebody/teacher", "v1"), ("somebody/teacher", "v2")]
    assert loaded == ["v1", "v2"]


def test_a_padding_token_of_the_student_alone(tmp_path, tiny):
    """It may stand where the teacher's tokenizer has nothing; not in the place of another token."""
    ours, theirs = tiny.tokenizer(), tiny.tokenizer(pad_token=None)
    ours.add_special_tokens({"pad_token": "[PAD]"})
    models = tiny.qwen3(0, vocabulary=48), tiny.qwen3(1, vocabulary=48)
    others = {"teacher_processing_class": theirs}
    tiny.trainer(tmp_path, *models, tokens=ours, others=others).train()
    theirs.add_tokens("w99")
    with pytest.raises(ValueError, match=r"in 1 of 44 tokens, first in '\[PAD\]', which is 43 .* and None"):
        tiny.trainer(tmp_path, *models, tokens=ours, others=others)
    with pytest.raises(
        ValueError, match=r"has 44 tokens, more than the smaller.*pad with another .tokenizer"
    ):
        tiny.trainer(tmp_path, tiny.qwen3(0), tiny.qwen3(1), tokens=ours)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(("student", "teacher"), [(43, 48), (48, 43)])
def test_padding_of_a_vocabulary_is_never_drawn_and_counts_for_nothing(
    tmp_path, tiny, student, teacher, alpha
):
    """It is never drawn, even by a model that would say nothing else; losses are those without it."""
    found = []
    for padded in (False, True):
        models = [tiny.qwen3(0, vocabulary=43), tiny.qwen3(1, vocabulary=43)]
        if padded:
            which = int(teacher == 48)
            models[which] = padded_copy(models[which], 48, tiny)
        trainer = tiny.trainer(
            tmp_path,
            *models,
            others={"pretraining_dataset": tiny.texts()},
            teacher_mix_alpha=alpha,
            pretraining_kd_ratio=0.5,
            allow_padded_vocabulary=True,
            max_steps=1,
            optim="sgd",
        )
        said = []
        score = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = lambda rows, score=score, said=said: (
            said.append(score(rows)) or said[-1]
        )
        before = trainer.model.lm_head.weight.detach().clone()
        trainer.train()
        after = trainer.model.lm_head.weight.detach()
        assert said[0]["completion_ids"].max() < 43
        assert not torch.equal(before[:43], after[:43])
        assert torch.equal(before[43:], after[43:])
        found.append((said[0]["completion_ids"], trainer.state.log_history[0], after[:43]))
    if alpha:  # with transformers' generate the draws differ: it draws from more elements
        assert torch.equal(found[0][0], found[1][0])
        for name in ("loss", "minillm/reverse_kl", "minillm/pt_loss", "entropy"):
            assert found[0][1][name] == pytest.approx(found[1][1][name], rel=1e-5)
        torch.testing.assert_close(found[0][2], found[1][2])


def padded_copy(model, size, tiny):
    """The same model with rows for unused tokens, which it deems near certain."""
    bigger = tiny.qwen3(0, vocabulary=size, tie_word_embeddings=False)
    state = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        extra = 50.0 * state[name].mean(0, keepdim=True).sign().expand(size - 43, -1)
        state[name] = torch.cat([state[name], extra])
    bigger.load_state_dict(state)
    return bigger


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


def test_no_length_of_answers(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"needs a max_completion_length"):
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
