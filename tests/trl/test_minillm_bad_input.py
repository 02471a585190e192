"""Settings and data: every mistake meets one error that names the fix, before work is lost."""

import math

import pytest
from datasets import Dataset, concatenate_datasets
from trl import DistillationConfig

from extensions.trl import MiniLLMConfig, MiniLLMTrainer
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
        ({"warm_start_learning_rate": -1.0}, "warm_start_learning_rate must be > 0, got -1.0"),
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
    for length in (59, 60):
        message = (
            f"A prompt of {length} tokens and an answer of 6 .*the {who}'s 64 positions.*at most 58 tokens"
        )
        with pytest.raises(ValueError, match=message):
            tiny.trainer(tmp_path, *models, long_prompts(tiny, length))
    tiny.trainer(tmp_path, *models, long_prompts(tiny, 58))
    with pytest.raises(ValueError, match=f"the {who}'s 64 positions. Lower max_completion_length"):
        tiny.trainer(tmp_path, *models, long_prompts(tiny, 10), max_completion_length=64)  # no prompt is left


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
    for column, nothing in (("text", ""), ("text", None), ("input_ids", [])):
        empty = Dataset.from_dict({column: [nothing] * 4})
        with pytest.raises(ValueError, match=rf"nothing but empty texts in its column '{column}'. Leave it"):
            tiny.trainer(tmp_path, others={"pretraining_dataset": empty})
    tiny.trainer(tmp_path, others={"pretraining_dataset": Dataset.from_dict({"text": ["", "w1"]})})


def test_text_that_is_no_dataset(tmp_path, tiny):
    with pytest.raises(TypeError, match=r"got a list. Make one: Dataset.from_dict\({'text': "):
        tiny.trainer(tmp_path, others={"pretraining_dataset": ["w1 w2"]})


def test_a_prompt_that_is_missing(tmp_path, tiny):
    data = Dataset.from_dict({"prompt": ["w1", None] * 8})
    with pytest.raises(ValueError, match=r"no prompt in 8 rows, first in row 1: it is None. Remove them"):
        tiny.trainer(tmp_path, data=data)


def test_nothing_to_train_on(tmp_path, tiny):
    trainer = MiniLLMTrainer(
        tiny.gpt2(0), tiny.gpt2(1), tiny.config(tmp_path), processing_class=tiny.tokenizer()
    )
    with pytest.raises(ValueError, match=r"nothing to train on: pass .* as `train_dataset`"):
        trainer.train()


def test_a_configuration_of_another_class(tmp_path, tiny):
    args = DistillationConfig(**tiny.settings(tmp_path))
    with pytest.raises(TypeError, match=r"args must be a MiniLLMConfig, got a DistillationConfig. MiniLLMCo"):
        MiniLLMTrainer(tiny.gpt2(0), tiny.gpt2(1), args, tiny.prompts(), processing_class=tiny.tokenizer())


@pytest.mark.parametrize("length", [0, -5])
def test_no_token_an_answer_may_have(tmp_path, tiny, length):
    with pytest.raises(ValueError, match=f"max_completion_length must be at least 1, got {length}: set"):
        tiny.trainer(tmp_path, max_completion_length=length)


@pytest.mark.parametrize("stream", [False, True])
def test_a_warm_start_without_answers(tmp_path, tiny, stream):
    columns = ("prompt", "completion") if stream else ("prompt",)  # a stream has answers but no length
    data = tiny.prompts(columns=columns)
    with pytest.raises(
        ValueError, match=r"warm_start_epochs needs .*'completion' columns.*or set warm_start"
    ):
        tiny.trainer(tmp_path, data=data.to_iterable_dataset() if stream else data, warm_start_epochs=1.0)
