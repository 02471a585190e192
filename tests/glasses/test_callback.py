"""GlassesCallback logs the gap through the trainer and leaves training as it is."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

trl = pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")

from extensions.glasses import HFCausalLM, Ones, collapse_curve  # noqa: E402
from extensions.glasses.callback import GlassesCallback  # noqa: E402
from extensions.glasses.tasks import Question  # noqa: E402

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "0", "1", "2", "3", "4", "5", "6"]
FAMILY = Ones(one=5, prefix=(1,))
LENGTHS = (4, 9)
NAMES = {
    "glasses/gap_l1", "glasses/argmax_equal", "glasses/snr_bfloat16", "glasses/argmax_equal_bfloat16",
    "glasses/bitwise_equal_bfloat16",
}  # fmt: skip


def make_tokenizer():
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def make_model(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        attention_dropout=dropout,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def arguments(config_class, folder, **changed):
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "max_steps": 4,
        "logging_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
    }
    return config_class(**(settings | changed))


def plain_trainer(folder, dropout=0.0, **changed):
    ids = torch.randint(4, len(WORDS), (16, 6), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": row, "labels": row} for row in ids]
    return transformers.Trainer(
        make_model(dropout),
        arguments(transformers.TrainingArguments, folder, **changed),
        train_dataset=rows,
        processing_class=make_tokenizer(),
    )


def sft_trainer(folder, model=None, **changed):
    rows = [{"prompt": " ".join(["1"] * n), "completion": f" {n}"} for n in (1, 2, 3, 4, 5, 6)]
    return trl.SFTTrainer(
        model or make_model(),
        arguments(trl.SFTConfig, folder, **changed),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=make_tokenizer(),
    )


def grpo_trainer(folder, **changed):
    def reward(completions, answer, **others):
        return [float(said.strip() == right) for said, right in zip(completions, answer, strict=True)]

    rows = [{"prompt": " ".join(["1"] * n), "answer": str(n)} for n in (1, 2, 3, 4, 5, 6)]
    return trl.GRPOTrainer(
        make_model(),
        reward,
        arguments(trl.GRPOConfig, folder, max_completion_length=1, num_generations=4, **changed),
        datasets.Dataset.from_list(rows),
        processing_class=make_tokenizer(),
    )


def minillm_trainer(folder):
    from extensions.trl import MiniLLMConfig, MiniLLMTrainer

    rows = [{"prompt": " ".join(["1"] * n)} for n in (1, 2, 3, 4, 5, 6) * 3]
    return MiniLLMTrainer(
        make_model(),
        make_model(seed=1),
        args=arguments(MiniLLMConfig, folder, max_completion_length=2),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=make_tokenizer(),
    )


def watched(trainer, **how):
    trainer.add_callback(GlassesCallback(trainer, FAMILY, LENGTHS, **{"every": 2, **how}))
    return trainer


def measured(trainer):
    """Entries of the history that hold gaps."""
    return [entry for entry in trainer.state.log_history if "glasses/gap_l1/4" in entry]


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


TRAINERS = {
    "Trainer": plain_trainer,
    "SFTTrainer": sft_trainer,
    "GRPOTrainer": grpo_trainer,
    "MiniLLMTrainer": minillm_trainer,
}


@pytest.mark.parametrize("name", TRAINERS)
def test_training_is_the_same_to_the_last_bit_and_has_the_gaps_in_its_history(name, tmp_path):
    alone, together = TRAINERS[name](tmp_path / "alone"), watched(TRAINERS[name](tmp_path / "together"))
    for trainer in (alone, together):
        transformers.set_seed(1)
        trainer.train()
    after = weights(together)
    for parameter, value in weights(alone).items():
        assert torch.equal(value, after[parameter]), parameter
    entries = measured(together)
    assert [entry["step"] for entry in entries] == [0, 2, 4]
    assert {f"{name}/{length}" for name in NAMES for length in LENGTHS} <= entries[0].keys()
    assert entries[0]["glasses/gap_l1/4"] != entries[-1]["glasses/gap_l1/4"]  # it is of the model in training
    # what the trainer itself logs, means of TRL's included, is all still there
    times = ("runtime", "per_second", "step_time")
    mine, theirs = (
        [
            {key: value for key, value in entry.items() if not any(part in key for part in times)}
            for entry in trainer.state.log_history
            if "glasses/gap_l1/4" not in entry
        ]
        for trainer in (together, alone)
    )
    assert mine == theirs


def test_what_is_logged_is_the_gap_of_the_model_as_it_is(tmp_path):
    trainer = watched(plain_trainer(tmp_path))
    trainer.train()
    curve = collapse_curve(HFCausalLM(trainer.model.eval()), FAMILY, LENGTHS, layers=(-1,), norms=("l1",))
    last = measured(trainer)[-1]
    for i, length in enumerate(LENGTHS):
        assert last[f"glasses/gap_l1/{length}"] == curve.gap["float32"][i, 0, 0].item()
        assert last[f"glasses/snr_bfloat16/{length}"] == curve.snr["bfloat16"][i, 0, 0].item()
        assert last[f"glasses/argmax_equal_bfloat16/{length}"] == curve.argmax_equal["bfloat16"][i].item()


def test_dropout_goes_on_as_without_it(tmp_path):
    alone, together = plain_trainer(tmp_path / "1", dropout=0.5), watched(plain_trainer(tmp_path / "2", 0.5))
    for trainer in (alone, together):
        transformers.set_seed(1)
        trainer.train()
    after = weights(together)
    assert all(torch.equal(value, after[name]) for name, value in weights(alone).items())


class Disturbing:
    """A family that draws from every global generator."""

    name = "disturbing"

    def pairs(self, length):
        torch.rand(1), random.random(), np.random.rand()
        return FAMILY.pairs(length)


def test_modes_and_generators_are_left_as_they_were(tmp_path):
    trainer = plain_trainer(tmp_path)
    callback = GlassesCallback(trainer, Disturbing(), LENGTHS)
    trainer.model.train()
    trainer.model.model.norm.eval()  # frozen by its owner
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    callback.measure()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert {name: module.training for name, module in trainer.model.named_modules()} == modes
    assert all(p.grad is None for p in trainer.model.parameters())


def test_the_step_is_logged_though_the_gap_was_logged_before_it(tmp_path):
    trainer = watched(plain_trainer(tmp_path, max_steps=2, logging_steps=1), every=1)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2]


def test_reporters_get_it_too(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tmp_path / "events")
    try:
        trainer = watched(plain_trainer(tmp_path, report_to="tensorboard", max_steps=2))
        trainer.train()
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    written = [event.step for event in events.Scalars("train/glasses/snr_bfloat16/9")]
    assert written == [0, 2]


def test_every_n_steps_and_at_the_last(tmp_path):
    trainer = watched(plain_trainer(tmp_path, max_steps=5), every=3)
    trainer.train()
    assert [entry["step"] for entry in measured(trainer)] == [0, 3, 5]


def test_a_resumed_training_measures_where_it_left_off(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole, resumed = (watched(plain_trainer(tmp_path / name, **settings)) for name in ("1", "2"))
    for trainer, checkpoint in ((whole, None), (resumed, str(tmp_path / "1" / "checkpoint-3"))):
        transformers.set_seed(1)
        trainer.train(resume_from_checkpoint=checkpoint)
    assert [entry["step"] for entry in measured(resumed)] == [0, 2, 4, 6]
    assert measured(resumed) == measured(whole)


def test_under_mixed_precision_the_reference_is_float32_all_through(tmp_path):
    """accelerate puts an autocasting forward in the model's place, of which the readout must know nothing."""
    trainer = watched(sft_trainer(tmp_path, bf16=True, max_steps=2))
    trainer.train()
    model = trainer.model
    assert "_original_forward" in model.__dict__
    mixed = model.__dict__["forward"]
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    callback = GlassesCallback(trainer, FAMILY, LENGTHS, dtypes=())
    callback.measure()
    hook.remove()
    assert set(seen) == {torch.float32}
    assert model.__dict__["forward"] is mixed
    assert model(torch.tensor([[1, 5]])).logits.dtype == torch.float32  # accelerate's conversion is back
    assert measured(trainer)[-1]["step"] == 2


def test_adapters_of_peft_are_in_what_is_measured(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trainer = watched(sft_trainer(tmp_path, peft.get_peft_model(make_model(), lora)))
    trainer.train()
    first, *_, last = measured(trainer)
    assert first["glasses/gap_l1/4"] != last["glasses/gap_l1/4"]
    base = collapse_curve(HFCausalLM(make_model().eval()), FAMILY, LENGTHS, layers=(-1,), norms=("l1",))
    assert first["glasses/gap_l1/4"] != pytest.approx(base.gap["float32"][0, 0, 0].item(), rel=1e-3)


def test_learned_prompts_of_peft_are_refused(tmp_path):
    """They are in front of the model that would be measured, and not in it."""
    peft = pytest.importorskip("peft")
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trainer = watched(sft_trainer(tmp_path, peft.get_peft_model(make_model(), prompts)))
    with pytest.raises(TypeError, match="puts learned vectors in front"):
        trainer.train()


class CountTask:
    """Questions that are encoded by the trainer's tokenizer."""

    name = "count"

    def items(self, length, size):
        return [self._item(length + i % 2) for i in range(size)]

    def minimal_pair(self, item):
        return item, self._item(item.length + 1)

    def _item(self, n):
        ones = " ".join(["1"] * n)
        return Question(f"<bos> {ones}", (6, 6 + len(ones)), ("1",) * n, " ", str(n), n)


def test_a_task_is_encoded_by_the_trainers_tokenizer(tmp_path):
    trainer = plain_trainer(tmp_path)
    found = GlassesCallback(trainer, CountTask(), LENGTHS, size=2).measure()
    curves = [
        collapse_curve(HFCausalLM(trainer.model.eval()), FAMILY, (n, n + 1), layers=(-1,), norms=("l1",))
        for n in LENGTHS
    ]
    for length, curve in zip(LENGTHS, curves, strict=True):
        assert found[f"glasses/gap_l1/{length}"] == pytest.approx(
            curve.gap["float32"].mean().item(), rel=1e-4
        )


def test_several_families_are_told_by_their_names(tmp_path):
    trainer = plain_trainer(tmp_path)
    found = GlassesCallback(trainer, {"a": FAMILY, "b": Ones(5, (1,), more=3)}, LENGTHS).measure()
    alone = GlassesCallback(trainer, FAMILY, LENGTHS).measure()
    assert found["glasses/a/gap_l1/4"] == alone["glasses/gap_l1/4"] != found["glasses/b/gap_l1/4"]
    assert len(found) == 2 * len(alone)


def test_bad_input_says_what_to_do(tmp_path):
    trainer = plain_trainer(tmp_path)
    for wrong in ({"every": 0}, {"size": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            GlassesCallback(trainer, FAMILY, LENGTHS, **wrong)
    trainer.add_callback(GlassesCallback(trainer, FAMILY, (9, 4)))
    with pytest.raises(ValueError, match="lengths must be positive and ascending"):
        trainer.train()
    with pytest.raises(TypeError, match=r"lengths must be a list: give \(8,\) for one"):
        GlassesCallback(trainer, FAMILY, 8)
    trainer.processing_class = None
    with pytest.raises(ValueError, match="processing_class"):
        GlassesCallback(trainer, CountTask(), LENGTHS)


def test_glasses_are_had_without_transformers():
    code = "import sys, extensions.glasses.ceiling; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
