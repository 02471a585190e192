"""What is logged and returned beside the weights: flips of an update and of an evaluation, logits."""

import pytest

LOSSES = ["sigmoid", "kd", "sft", "qdpo_target"]


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_for_metrics_and_predictions(tmp_path, tiny, loss):
    shapes = []

    def metrics(predictions):
        shapes.append(predictions.predictions.shape)
        return {"rows": len(predictions.predictions)}

    held_out = {"eval_dataset": tiny.prompts(8), "compute_metrics": metrics}
    trainer = tiny.qdpo(tmp_path, loss_type=loss, others=held_out)
    assert trainer.evaluate()["eval_rows"] == 16  # both replies of a pair
    assert trainer.predict(trainer.eval_dataset).metrics["test_rows"] == 16
    assert {shape[-1] for shape in shapes} == {43}


@pytest.mark.parametrize("loss", ["sigmoid", "kd"])
def test_flips_of_an_epochs_last_update(tmp_path, tiny, loss):
    """10 prompts in batches of 4, the last of 2: each batch of the update counts in full."""
    data = {"data": tiny.prompts(10), "loss_type": loss, "learning_rate": 0.0}
    whole = tiny.qdpo(tmp_path / "whole", **data, per_device_train_batch_size=10, max_steps=1)
    parts = {"gradient_accumulation_steps": 3, "max_steps": -1, "num_train_epochs": 1}
    few = tiny.qdpo(tmp_path / "few", **data, **parts, per_device_train_batch_size=4)
    for trainer in (whole, few):
        trainer.train()
    logged = [trainer.state.log_history[0]["flip_rate"] for trainer in (whole, few)]
    assert logged[0] == pytest.approx(logged[1], abs=1e-9)
    assert 0 < logged[0] < 1


def test_a_prediction_does_not_count_in_the_next_evaluation(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path, others={"eval_dataset": tiny.prompts(6)})
    alone = trainer.evaluate()["eval_flip_rate"]
    trainer.predict(trainer.train_dataset)
    assert trainer.evaluate()["eval_flip_rate"] == alone


def test_flips_are_named_by_what_is_evaluated(tmp_path, tiny):
    sets = {"short": tiny.prompts(8), "long": tiny.prompts(12, longest=12, shortest=8)}
    found = tiny.qdpo(tmp_path, others={"eval_dataset": sets}).evaluate()
    for name, prompts in sets.items():
        alone = tiny.qdpo(tmp_path, others={"eval_dataset": prompts}).evaluate()
        assert found[f"eval_{name}_flip_rate"] == alone["eval_flip_rate"]
    assert found["eval_short_flip_rate"] != found["eval_long_flip_rate"]
    assert "eval_flip_rate" not in found


def test_new_prompts_where_a_reference_was_asked_for_that_no_loss_reads(tmp_path, tiny):
    trainer = tiny.qdpo(tmp_path, loss_type="kd", precompute_ref_log_probs=True)
    trainer.train()
    assert trainer.evaluate(tiny.prompts(6))["eval_kd_loss"] > 0
