"""N + N steps are 2N steps, wherever the interruption falls: with the pairs of the round it falls in."""

import shutil

import pytest
import torch
from peft import LoraConfig

from extensions.trl.qdpo.pair_trainer import PairTrainer

ROUNDS = {"num_rounds": 2, "epochs_per_round": 1, "num_train_epochs": 2, "max_steps": -1}


def trained(tiny, folder, resume=None, **settings):
    """Weights, logs and the number of updates of a run that keeps a checkpoint of each update."""
    trainer = tiny.qdpo(
        folder,
        **{
            "per_device_train_batch_size": 3,
            "learning_rate": 3e-2,
            "save_strategy": "steps",
            "save_steps": 1,
            **ROUNDS,
            **settings,
        },
    )
    trainer.train(resume_from_checkpoint=resume)
    logs = {
        entry["step"]: {name: value for name, value in entry.items() if name != "num_tokens"}
        for entry in trainer.state.log_history
        if "loss" in entry
    }  # the host counts tokens anew after an interruption
    return trainer, tiny.weights(trainer.model), logs


def assert_goes_on_exactly(tiny, tmp_path, steps, **settings):
    """Runs that go on from these updates of a whole one end where it ended, and log what it logged."""
    trainer, whole, logs = trained(tiny, tmp_path / "whole", **settings)
    for at in steps:
        checkpoint = tmp_path / "whole" / f"checkpoint-{at}"
        again, resumed, later = trained(tiny, tmp_path / "again", str(checkpoint), **settings)
        assert tiny.moved(whole, resumed) == set(), at
        assert again.state.global_step == trainer.state.global_step > at
        for step in range(at + 1, trainer.state.global_step + 1):
            assert logs[step] == later[step], (at, step)
        shutil.rmtree(tmp_path / "again")
    return trainer


# 13 prompts give 12 pairs or so, in batches of 3: 4 updates a round
def test_in_the_first_round_at_its_end_and_in_the_second(tmp_path, tiny):
    trainer = assert_goes_on_exactly(tiny, tmp_path, (2, 4, 6))
    assert trainer.state.global_step == 8
    assert trainer.train_dataset.number == 1


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"precompute_ref_log_probs": True}, marks=pytest.mark.slow),
        {"loss_type": ["qdpo_target", "kd"], "anchor_fraction": 0.5, "shuffle_labels": True},
        {"gradient_accumulation_steps": 2, "dataloader_num_workers": 2},
        pytest.param({"loss_type": "kd_on_policy"}, marks=pytest.mark.slow),
        pytest.param({"train_scales_only": True, "learning_rate": 1e-2}, marks=pytest.mark.slow),
        pytest.param({"others": {"peft_config": LoraConfig(r=2)}}, marks=pytest.mark.slow),
        pytest.param({"num_train_epochs": 4, "epochs_per_round": 2}, marks=pytest.mark.slow),
        pytest.param({"bf16": True, "gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_every_moving_part_is_in_the_checkpoint(tmp_path, tiny, settings):
    end = 4 if "gradient_accumulation_steps" in settings else 8
    assert_goes_on_exactly(tiny, tmp_path, (end // 2, end // 2 + 1), **settings)


@pytest.mark.slow
def test_from_every_update(tmp_path, tiny):
    assert_goes_on_exactly(tiny, tmp_path, range(1, 8))


def test_one_round_resumes_as_the_host_does(tmp_path, tiny):
    assert_goes_on_exactly(tiny, tmp_path, (2,), num_rounds=1, num_train_epochs=1)


@pytest.mark.slow
def test_evaluation_between_does_not_move_a_resumed_run(tmp_path, tiny):
    rest = {"others": {"eval_dataset": tiny.prompts(5)}, "eval_strategy": "steps", "eval_steps": 3}
    assert_goes_on_exactly(tiny, tmp_path, (5,), **rest)


def test_from_the_last_checkpoint_of_the_folder(tmp_path, tiny):
    _, whole, _ = trained(tiny, tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "checkpoint-8")
    shutil.rmtree(tmp_path / "whole" / "checkpoint-7")
    _, resumed, _ = trained(tiny, tmp_path / "whole", True)
    assert tiny.moved(whole, resumed) == set()


def test_at_the_end_of_a_round_that_nothing_follows(tmp_path, tiny, monkeypatch):
    """The checkpoint of an epoch's last update is older than the finding that no pair is left."""
    monkeypatch.setattr(PairTrainer, "_new_round", lambda *_: [])
    trainer, whole, _ = trained(tiny, tmp_path / "whole")
    last = tmp_path / "whole" / f"checkpoint-{trainer.state.global_step}"
    again, resumed, _ = trained(tiny, tmp_path / "again", str(last))
    assert again.state.global_step == trainer.state.global_step == 4
    assert tiny.moved(whole, resumed) == set()


def test_modules_that_are_left_out_may_be_a_tuple(tmp_path, tiny):
    settings = {"modules_to_not_quantize": ("down_proj",), "num_rounds": 1, "num_train_epochs": 1}
    trainer, _, _ = trained(tiny, tmp_path, **settings)
    again, _, _ = trained(tiny, tmp_path, str(tmp_path / "checkpoint-2"), **settings)
    assert again.state.global_step == trainer.state.global_step


def test_a_checkpoint_that_was_not_finished(tmp_path, tiny):
    trained(tiny, tmp_path)
    (tmp_path / "checkpoint-6" / "round.json").unlink()
    with pytest.raises(FileNotFoundError, match="is incomplete"):
        trained(tiny, tmp_path, str(tmp_path / "checkpoint-6"))


def test_what_is_resumed_is_not_what_begins_anew(tmp_path, tiny):
    """What is equal above would differ without the round's pairs."""
    _, whole, _ = trained(tiny, tmp_path / "whole")
    checkpoint = tmp_path / "whole" / "checkpoint-6"
    shutil.rmtree(checkpoint / "pairs")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2" / "pairs", checkpoint / "pairs")
    _, resumed, _ = trained(tiny, tmp_path / "again", str(checkpoint))
    assert tiny.moved(whole, resumed)
    assert not torch.equal(whole["model.norm.weight"], resumed["model.norm.weight"])
