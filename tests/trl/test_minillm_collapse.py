"""With its own parts switched off MiniLLM is TRL's DistillationTrainer; and what it asks of either model."""

import pytest
import torch
from trl import DistillationConfig, DistillationTrainer

from extensions.trl import MiniLLMConfig, MiniLLMTrainer
from extensions.trl._host import last_hidden_state

COLLAPSED = {
    "long_term": False,
    "importance_weights": "none",
    "teacher_mix_alpha": 0.0,
    "normalization": "token",
    "steps_per_generation": 1,
    "num_iterations": 1,
}


@pytest.mark.parametrize(
    ("build", "lengths"),
    [("qwen3", (1, 6)), ("gpt2", (4, 4))],
    ids=["rope and padding", "learned positions, no padding"],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_without_its_own_parts_it_is_trls_distillation(tmp_path, tiny, build, lengths, accumulation):
    """Given the prompts in one order: the same answers, losses, gradients and weights."""
    runs = []
    for trainer_class, config_class, own in (
        (DistillationTrainer, DistillationConfig, {"disable_dropout": True}),
        (MiniLLMTrainer, MiniLLMConfig, {**COLLAPSED, "steps_per_generation": accumulation}),
    ):
        # Adam would make whole steps of the roundings in gradients that are zero
        same = {"max_steps": 4, "optim": "sgd", "max_grad_norm": 0.0}
        args = config_class(
            **tiny.settings(tmp_path, gradient_accumulation_steps=accumulation, **same, **own)
        )
        data = tiny.prompts(48, shortest=lengths[0], longest=lengths[1])
        if trainer_class is DistillationTrainer:  # whose order of prompts is its own: hand it ours
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.seed))
            data, args.shuffle_dataset = data.select(order.tolist()), False
        make = getattr(tiny, build)
        trainer = trainer_class(
            make(0), make(1, layers=2, width=32), args, data, processing_class=tiny.tokenizer()
        )
        gradients = tiny.gradients(trainer)
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        lengths_ = [entry["completions/mean_length"] for entry in log]
        runs.append(([entry["loss"] for entry in log], lengths_, gradients, tiny.weights(trainer.model)))
    (theirs, lengths_, their_gradients, their_weights), (ours, lengths_2, our_gradients, our_weights) = runs
    assert lengths_ == lengths_2  # the same answers
    assert theirs == pytest.approx(ours, rel=1e-5)
    assert theirs[0] > 0.05
    assert len(their_gradients) == 4
    for one, other in zip(their_gradients, our_gradients, strict=True):
        tiny.assert_close(one, other, 1e-5)
    for name, weight in their_weights.items():
        torch.testing.assert_close(our_weights[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", ["qwen3", "gpt2"])
def test_left_padding_does_not_change_what_a_model_says(tiny, build):
    model = getattr(tiny, build)(layers=2).eval()
    ids = torch.randint(3, 30, (1, 7))
    padded = torch.cat([torch.zeros(1, 5).long(), ids], 1)
    mask = torch.cat([torch.zeros(1, 5).long(), torch.ones(1, 7).long()], 1)
    with torch.no_grad():
        alone = model.lm_head(last_hidden_state(model, ids, torch.ones_like(ids)))
        with_padding = model.lm_head(last_hidden_state(model, padded, mask))[:, 5:]
    torch.testing.assert_close(with_padding, alone, rtol=1e-5, atol=1e-5)


def test_the_sampler_and_the_loss_agree_on_gpt2_with_left_padding(tmp_path, tiny):
    """Scores of padded answers are those of the same answers without padding, for student and teacher."""
    data = tiny.prompts(8)
    trainer = tiny.trainer(tmp_path, data=data, steps_per_generation=2, num_iterations=1)
    trainer.model.train()
    rollouts = trainer._scored(trainer._generate_and_score_completions(list(data)))
    assert (rollouts["prompt_mask"] == 0).any()
    for i in range(8):
        prompt = rollouts["prompt_ids"][i][rollouts["prompt_mask"][i] != 0]
        answer = rollouts["completion_ids"][i][rollouts["completion_mask"][i] != 0]
        for model, name in ((trainer.model, "old_log_q"), (trainer.teacher_model, "log_p")):
            with torch.no_grad():
                logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
            alone = torch.log_softmax(logits, -1).gather(1, answer[:, None])[:, 0]
            torch.testing.assert_close(rollouts[name][i, : len(answer)], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("bf16", "dtype", "reads"),
    [(False, torch.float32, 0), (True, torch.float32, 2), (True, torch.bfloat16, 0)],
    ids=str,
)
@pytest.mark.parametrize("method", ["coin_flip", "mixture"])
def test_the_teachers_hidden_states_may_be_kept_or_computed_again(tmp_path, tiny, bf16, dtype, reads, method):
    """Those it has from drawing the answers too, but for a float32 teacher that drew under autocast."""
    found, fresh = [], []
    for keep in (True, False):
        trainer = tiny.trainer(
            tmp_path,
            teacher=tiny.gpt2(1, layers=2, width=32).to(dtype),
            cache_teacher_hidden=keep,
            teacher_mix_alpha=0.4,
            teacher_mix_method=method,
            steps_per_generation=2,
            max_steps=4,
            bf16=bf16,
        )
        read = trainer._through_teacher
        trainer._through_teacher = lambda *args, read=read: fresh.append(len(found)) or read(*args)
        found.append(tiny.gradients(trainer))
        trainer.train()
    assert fresh.count(1) == reads
    for one, other in zip(*found, strict=True):
        tiny.assert_close(one, other, 1e-5 if dtype == torch.float32 else 1e-2)
