"""
The losses against the same written out token by token.

Models are in float64, but TRL's fused head gives log-probabilities in float32.
"""

import math

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from extensions.trl.qdpo.batches import HALVES
from extensions.trl.qdpo.layers import full_precision
from extensions.trl.qdpo.losses import mean_over_tokens, target_loss
from extensions.trl.qdpo.reading import halves_read

X = [9, 12]
PAIRS = [  # replies of three tokens; of different lengths; ended; with a shared beginning
    {"prompt_ids": X, "chosen_ids": [30, 31, 32], "rejected_ids": [33, 31, 34]},
    {"prompt_ids": [20], "chosen_ids": [30, 31, 32, 1], "rejected_ids": [30, 40]},
    {"prompt_ids": [14, 15, 16], "chosen_ids": [18, 19, 20, 21, 22], "rejected_ids": [18, 19, 23, 1]},
]


def log_probs(model, prompt, reply):
    """Log-probability of each token of a reply, and the laws they are drawn from."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].double()
    laws = logits.log_softmax(-1)
    return [laws[i, token].item() for i, token in enumerate(reply)], laws


def build(tiny, folder, pairs=PAIRS, **settings):
    """A trainer in float64 whose policy is not its reference any more."""
    values = {"per_device_train_batch_size": len(pairs), "max_steps": 1, "max_grad_norm": 0.0, **settings}
    trainer = tiny.qdpo(folder, tiny.llama(layers=2).double(), Dataset.from_list(pairs), **values)
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return trainer


def loss_of(trainer, rows=None):
    """Loss and gradients over a batch."""
    loader = trainer.get_train_dataloader()
    batch = next(iter(loader)) if rows is None else loader.collate_fn(rows)
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    named = trainer.model.named_parameters()
    return loss.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


def expected(trainer, of_pair, pairs=PAIRS, window=None):
    """Mean of ``of_pair(policy's, reference's, teacher's log-ratios)`` over pairs."""
    total = 0.0
    for pair in pairs:
        ratios = []
        first = 0
        if window is not None:
            first = next(i for i in range(9) if pair["chosen_ids"][i] != pair["rejected_ids"][i])
        last = None if window is None else first + window
        for model, off in (
            (trainer.model, False),
            (trainer.teacher.initial, False),
            (trainer.teacher.initial, True),
        ):
            scores = []
            for name in ("chosen_ids", "rejected_ids"):
                if off:
                    with full_precision(model):
                        found, _ = log_probs(model, pair["prompt_ids"], pair[name])
                else:
                    found, _ = log_probs(model, pair["prompt_ids"], pair[name])
                scores.append(sum(found[first:last]))
            ratios.append(scores[0] - scores[1])
        total += of_pair(*ratios)
    return total / len(pairs)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def paper(g, reference, t, beta=0.1):
    return -math.log(sigmoid(beta * (g - reference)))


def squared(g, reference, t):
    return (g - t) ** 2


def cross_entropy(g, reference, t):
    p, q = sigmoid(t), sigmoid(g)
    return -(p * math.log(q) + (1 - p) * math.log(1 - q)) + (p * math.log(p) + (1 - p) * math.log(1 - p))


@pytest.mark.parametrize("window", [None, 1, 2])
@pytest.mark.parametrize(
    ("settings", "by_hand"),
    [
        ({"loss_type": "sigmoid"}, paper),
        ({"loss_type": "qdpo_target"}, squared),
        ({"loss_type": "qdpo_target", "target_loss": "bce"}, cross_entropy),
        (
            {"loss_type": ["qdpo_target", "sigmoid"], "loss_weights": [0.5, 2.0]},
            lambda *ratios: 0.5 * squared(*ratios) + 2.0 * paper(*ratios),
        ),
    ],
    ids=["sigmoid", "target", "target, bce", "both"],
)
def test_pairs_by_hand(tmp_path, tiny, settings, by_hand, window):
    trainer = build(tiny, tmp_path, **settings, divergence_window=window)
    assert loss_of(trainer)[0] == pytest.approx(expected(trainer, by_hand, window=window), rel=1e-5, abs=5e-7)


def test_a_pair_of_three_tokens(tmp_path, tiny):
    """(g - t)^2 with g and t added up by hand."""
    trainer = build(tiny, tmp_path, PAIRS[:1], loss_type="qdpo_target")
    g = t = 0.0
    for name, sign in (("chosen_ids", 1), ("rejected_ids", -1)):
        ids = X + PAIRS[0][name]
        for model, quantizing in ((trainer.model, True), (trainer.teacher.initial, False)):
            for layer in model.modules():
                if hasattr(layer, "quantizing"):
                    layer.quantizing = quantizing
            with torch.no_grad():
                laws = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            said = laws[1, ids[2]] + laws[2, ids[3]] + laws[3, ids[4]]
            g, t = (g + sign * said, t) if quantizing else (g, t + sign * said)
    assert abs(g - t) > 0.01
    assert loss_of(trainer)[0] == pytest.approx(float((g - t) ** 2), rel=1e-5)


@pytest.mark.parametrize(("loss", "reply"), [("kd", "chosen_ids"), ("kd_on_policy", "rejected_ids")])
@pytest.mark.parametrize("head", [False, True], ids=["head in full", "head in few bits"])
def test_distillation_is_the_whole_forward_kl(tmp_path, tiny, loss, reply, head):
    """Mean over all tokens of the batch of the sum over the vocabulary; the gradient by differences."""
    trainer = build(tiny, tmp_path, loss_type=loss, quantize_lm_head=head, loss_weights=[1.5])

    def by_loops():
        total, count = 0.0, 0
        for pair in PAIRS:
            _, policy = log_probs(trainer.model, pair["prompt_ids"], pair[reply])
            with full_precision(trainer.teacher.initial):
                _, teacher = log_probs(trainer.teacher.initial, pair["prompt_ids"], pair[reply])
            for q, p in zip(policy.tolist(), teacher.tolist(), strict=True):
                total += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
                count += 1
        return 1.5 * total / count

    loss, gradients = loss_of(trainer)
    assert loss == pytest.approx(by_loops(), rel=1e-6)
    assert loss > 1e-3
    norm = trainer.model.model.norm.weight  # not quantized, so that differences see its gradient
    step = 1e-6
    norm.data[3] += step
    above = by_loops()
    norm.data[3] -= 2 * step
    slope = (above - by_loops()) / (2 * step)
    assert gradients["model.norm.weight"][3].item() == pytest.approx(slope, rel=1e-4)


def test_sft_is_trls(tmp_path, tiny):
    """On pairs of which TRL reads both halves, and this one the chosen replies only."""
    model = tiny.llama(layers=2)
    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")
    trainer = tiny.qdpo(
        tmp_path, model, Dataset.from_list(PAIRS), bits=None, loss_type="sft", per_device_train_batch_size=3
    )
    loss, gradients = loss_of(trainer)
    values = tiny.settings(tmp_path, loss_type="sft", gradient_checkpointing=False)
    del values["max_completion_length"]
    host = DPOTrainer(
        model,
        args=DPOConfig(**values),
        train_dataset=tiny.prompts(2, ("prompt", "chosen", "rejected")),
        processing_class=tiny.tokenizer(),
    )
    theirs, of_host = loss_of(host, PAIRS)
    assert loss == pytest.approx(theirs, rel=1e-6)
    tiny.assert_close(gradients, of_host, 1e-6)


@pytest.mark.parametrize("losses", ["sft", "kd", "kd_on_policy", ["sft", "kd"]])
def test_what_no_loss_reads_is_not_in_the_batch(tmp_path, tiny, losses):
    trainer = build(tiny, tmp_path, loss_type=losses)
    (half,) = trainer.halves
    assert half == ("rejected" if losses == "kd_on_policy" else "chosen")
    batch = next(iter(trainer.get_train_dataloader()))
    ids = [row["prompt_ids"] + row[f"{half}_ids"] for row in PAIRS]
    assert batch["input_ids"].shape == (3, max(len(row) for row in ids))
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    assert sorted(row[mask.bool()].tolist() for row, mask in rows) == sorted(ids)
    few, gradients = loss_of(trainer, PAIRS)
    trainer.halves = HALVES
    whole, of_whole = loss_of(trainer, PAIRS)
    assert few == pytest.approx(whole, rel=1e-6)
    tiny.assert_close(gradients, of_whole, 1e-6)


def test_which_replies_are_read():
    assert halves_read(["sft", "kd"]) == ("chosen",)
    assert halves_read(["kd_on_policy"]) == ("rejected",)
    assert halves_read(["kd", "kd_on_policy"]) == halves_read(["sigmoid"]) == HALVES
    assert halves_read(["qdpo_target", "kd"]) == HALVES


@pytest.mark.parametrize("loss", ["sigmoid", "qdpo_target", "hinge"])
def test_a_shared_beginning_has_no_gradient(tmp_path, tiny, loss):
    """It is as if it belonged to the prompt."""
    within = [{"prompt_ids": [9, 12], "chosen_ids": [30, 31, 32, 8], "rejected_ids": [30, 31, 34]}]
    before = [{"prompt_ids": [9, 12, 30, 31], "chosen_ids": [32, 8], "rejected_ids": [34]}]
    found = [loss_of(build(tiny, tmp_path, pairs, loss_type=loss)) for pairs in (within, before)]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6, abs=1e-6)
    tiny.assert_close(found[0][1], found[1][1], 5e-5)


def test_replies_that_are_the_same_have_no_gradient(tmp_path, tiny):
    same = [{"prompt_ids": [9, 12], "chosen_ids": [30, 31], "rejected_ids": [30, 31]}]
    loss, gradients = loss_of(build(tiny, tmp_path, same))
    assert loss == pytest.approx(math.log(2))
    assert max(gradient.abs().max() for gradient in gradients.values()) < 1e-7


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_the_target_loss_is_least_at_the_target(kind):
    target = torch.tensor([-3.0, -0.2, 0.0, 0.5, 4.0, 300.0], dtype=torch.float64)
    ratio = target.clone().requires_grad_()
    loss = target_loss(ratio, target, kind)
    assert loss.detach().abs().max() < 1e-9
    loss.sum().backward()
    assert ratio.grad.abs().max() < 1e-9
    for off in (-1.0, 1.0):
        assert (target_loss(target[:-1] + off, target[:-1], kind) > 1e-3).all()


def test_the_mean_over_no_token_is_nothing():
    values = torch.tensor([[2.0, 4.0], [6.0, 100.0]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0]])
    assert mean_over_tokens(values, mask).item() == 4.0
    nothing = mean_over_tokens(values, torch.zeros(2, 2, dtype=torch.long))
    nothing.backward()
    assert nothing.item() == 0.0
    assert not values.grad.any()
