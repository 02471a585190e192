"""With ready pairs and no quantizer it is TRL's DPOTrainer: losses, gradients, metrics, weights, exactly."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from trl import DPOConfig, DPOTrainer

from extensions.trl import QDPOConfig, QDPOTrainer
from extensions.trl.qdpo.qdpo_config import TRL_PAIR_LOSSES

PAIRS = ("prompt", "chosen", "rejected")


def pairs(tiny, n=12, columns=PAIRS):
    """Pairs as text, of which one reply may be the longer one."""
    data = tiny.prompts(n, columns)
    return data.map(lambda row: {name: f" {row[name]}" for name in ("chosen", "rejected")})


def as_ids(dataset, tokens):
    """The pairs as TRL tokenizes them: an end token after each reply."""
    ends = [tokens.eos_token_id]
    rows = [
        {f"{name}_ids": tokens(row[name])["input_ids"] + (ends if name != "prompt" else []) for name in PAIRS}
        for row in dataset
    ]
    return dataset.from_list(rows)


def run(tiny, folder, ours, model=None, data=None, others=None, ids=False, evaluate=(), **settings):
    """What is seen of a run of three updates: each gradient, all that is logged, the weights after it."""
    del settings["max_completion_length"]
    tokens = tiny.tokenizer()
    data = pairs(tiny) if data is None else data(tiny)
    if ids and ours:
        data = as_ids(data, tokens)
    args = (QDPOConfig if ours else DPOConfig)(**settings, **({"bits": None} if ours else {}))
    model = named(tiny, folder) if model is None else model(tiny, folder)
    trainer = (QDPOTrainer if ours else DPOTrainer)(
        model=model,
        args=args,
        train_dataset=data,
        processing_class=tokens,
        **{name: make(tiny, folder, tokens, ids and ours) for name, make in (others or {}).items()},
    )
    seen = tiny.gradients(trainer)
    evaluations = [trainer.evaluate()] if "before" in evaluate else []
    trainer.train()
    evaluations += [trainer.evaluate()] if "after" in evaluate else []
    own = ("runtime", "per_second", "_time", "flip_rate", "sft_loss", "flos")
    logged = [
        {name: value for name, value in entry.items() if not name.endswith(own)}
        for entry in (*trainer.state.log_history, *evaluations)
    ]
    return seen, logged, tiny.weights(trainer.model), trainer


def named(tiny, folder):
    """A model with a name, by which TRL finds its reference."""
    model = tiny.llama()
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    model.config._name_or_path = str(folder / "model")
    return model


def assert_same_runs(tiny, tmp_path, **settings):
    theirs, ours = (
        run(tiny, tmp_path, is_ours, **{**tiny.settings(tmp_path / str(is_ours), max_steps=3), **settings})
        for is_ours in (False, True)
    )
    assert len(theirs[0]) == len(ours[0]) == 3
    for one, other in zip(theirs[0], ours[0], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert theirs[1] == ours[1]
    assert tiny.moved(theirs[2], ours[2]) == set()
    return ours[3]


SMOOTHING = 0.1


def test_every_loss_on_pairs_in_one_step(tmp_path, tiny):
    trainers = [
        run(tiny, tmp_path, ours, **tiny.settings(tmp_path, max_steps=1, label_smoothing=SMOOTHING))[3]
        for ours in (False, True)
    ]
    found = set()
    for loss in TRL_PAIR_LOSSES:
        steps = []
        for trainer in trainers:
            trainer.loss_types, trainer.loss_weights = [loss], [1.5]
            trainer.model.zero_grad()
            batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
            value = trainer.training_step(trainer.model, batch)
            steps.append({"loss": value} | {n: p.grad for n, p in trainer.model.named_parameters()})
        assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0]), loss
        found.add(steps[0]["loss"].item())
    assert len(found) == len(TRL_PAIR_LOSSES)


@pytest.mark.slow
@pytest.mark.parametrize("loss", TRL_PAIR_LOSSES)
def test_every_loss_on_pairs(tmp_path, tiny, loss):
    assert_same_runs(tiny, tmp_path, loss_type=loss, label_smoothing=SMOOTHING)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"ids": True}, id="pairs as token ids"),
        pytest.param({"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.4]}, id="with sft"),
        pytest.param(
            {"loss_type": ["sigmoid", "bco_pair", "hinge"], "loss_weights": [1, 2, 3]},
            id="three",
            marks=pytest.mark.slow,
        ),
        pytest.param({"precompute_ref_log_probs": True}, id="precomputed reference", marks=pytest.mark.slow),
        pytest.param({"precompute_ref_log_probs": True, "ids": True}, id="precomputed, token ids"),
        pytest.param(
            {"model": lambda tiny, folder: named(tiny, folder) and str(folder / "model")}, id="path"
        ),
        pytest.param(
            {"sync_ref_model": True, "ref_model_sync_steps": 1},
            id="reference that follows",
            marks=pytest.mark.slow,
        ),
        pytest.param({"use_weighting": True}, id="WPO weights", marks=pytest.mark.slow),
        pytest.param({"ld_alpha": 0.5}, id="length desensitized", marks=pytest.mark.slow),
        pytest.param({"f_divergence_type": "forward_kl"}, id="forward KL", marks=pytest.mark.slow),
        pytest.param({"f_divergence_type": "js_divergence"}, id="Jensen-Shannon", marks=pytest.mark.slow),
        pytest.param(
            {"f_divergence_type": "alpha_divergence"}, id="alpha divergence", marks=pytest.mark.slow
        ),
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulated gradient"),
        pytest.param({"bf16": True}, id="bfloat16"),
        pytest.param({"gradient_checkpointing": False}, id="no checkpointing", marks=pytest.mark.slow),
        pytest.param(
            {"max_length": 6, "truncation_mode": "keep_end"}, id="the end kept", marks=pytest.mark.slow
        ),
        pytest.param({"max_length": 5}, id="cut", marks=pytest.mark.slow),
        pytest.param({"pad_to_multiple_of": 8}, id="padded to eights", marks=pytest.mark.slow),
        pytest.param(
            {"data": lambda tiny: pairs(tiny).to_iterable_dataset()}, id="stream", marks=pytest.mark.slow
        ),
        pytest.param(
            {"data": lambda tiny: pairs(tiny, 12, PAIRS[1:])},
            id="the prompt is implicit",
            marks=pytest.mark.slow,
        ),
        pytest.param({"others": {"ref_model": lambda tiny, *_: tiny.llama(seed=3)}}, id="another reference"),
        pytest.param({"others": {"peft_config": lambda *_: LoraConfig(r=2)}}, id="LoRA"),
        pytest.param(
            {"others": {"peft_config": lambda *_: LoraConfig(r=2)}, "precompute_ref_log_probs": True},
            id="LoRA, precomputed",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "others": {
                    "peft_config": lambda *_: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
                }
            },
            id="prompt tuning",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"model": lambda tiny, folder: get_peft_model(named(tiny, folder), LoraConfig(r=2))},
            id="a model with an adapter",
        ),
    ],
)
def test_every_way_to_train(tmp_path, tiny, settings):
    assert_same_runs(tiny, tmp_path, **settings)


def held_out(tiny, folder, tokens, ids):
    data = pairs(tiny, 22).select(range(13, 22))
    return as_ids(data, tokens) if ids else data


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"others": {"eval_dataset": held_out}}, marks=pytest.mark.slow),
        {"others": {"eval_dataset": held_out}, "ids": True, "precompute_ref_log_probs": True},
        {
            "others": {
                "eval_dataset": lambda *a: {"a": held_out(*a), "b": held_out(*a)},
                "compute_metrics": lambda *_: lambda p: {"first": p.predictions[0].argmax(-1).sum().item()},
            },
        },
    ],
    ids=["one", "token ids, precomputed", "two, with metrics"],
)
def test_evaluation_before_in_between_and_after(tmp_path, tiny, settings):
    between = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = assert_same_runs(tiny, tmp_path, evaluate=("before", "after"), **between, **settings)
    names = [name for entry in trainer.state.log_history for name in entry]
    assert sum(name.startswith("eval_") and name.endswith("flip_rate") for name in names) >= 3


def test_the_runs_that_are_compared_learn(tmp_path, tiny):
    """What is equal above is not equal for lack of training."""
    first, other = (
        run(tiny, tmp_path, True, **tiny.settings(tmp_path, max_steps=3, loss_type=loss))
        for loss in ("sigmoid", "hinge")
    )
    losses = [entry["loss"] for entry in first[1] if "loss" in entry]
    assert len(set(losses)) == 3
    assert len(tiny.moved(first[2], other[2])) == len(first[2])
    start = tiny.weights(named(tiny, tmp_path))
    assert tiny.moved(start, first[2]) == set(start)
