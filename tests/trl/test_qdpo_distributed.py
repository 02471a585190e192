"""Two processes make the same pairs and learn what one would. On the CPU they are joined by DDP over gloo."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from extensions.trl.qdpo.layers import quantized_layers

HERE = Path(__file__)
TWO_GPUS = torch.cuda.is_available() and torch.cuda.device_count() > 1
ROUNDS = {"num_rounds": 2, "num_train_epochs": 2, "max_steps": -1}
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
TASKS = {
    "pairs": {"loss_type": ["sigmoid", "qdpo_target"], "anchor_fraction": 1.0},
    "precomputed": {"precompute_ref_log_probs": True, "anchor_fraction": 1.0},
    "distilled": {"loss_type": "kd_on_policy", "gradient_checkpointing": True},
    "rounds": {**ROUNDS, "loss_type": ["qdpo_target", "kd"], "learning_rate": 3e-2},
    "resume": {**ROUNDS, "precompute_ref_log_probs": True, "save_strategy": "steps", "save_steps": 1},
}


def build(tiny, folder, task, batch, device="cpu"):
    """17 prompts, so that the last batch is not full: over two processes some rows are read twice."""
    return tiny.qdpo(
        folder,
        data=tiny.prompts(17),
        others={"eval_dataset": tiny.prompts(7)},
        **{
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": 2,
            "generation_batch_size": 1,
            "max_steps": 2,
            "max_grad_norm": 0.0,
            "optim": "sgd",
            "learning_rate": 1e-2,
            "use_cpu": device == "cpu",
            **TASKS[task],
        },
    )


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).cpu()


def seen(trainer):
    """
    What is compared: pairs, the teacher's words on them, the losses, the weights.

    Nothing is evaluated before training: after that, transformers 5 trains without joining the processes.
    """
    rows = trainer.train_dataset
    pairs = getattr(rows, "pairs", rows)
    return {
        "pairs": [[row[name] for name in IDS] for row in pairs],
        "scores": {name: pairs[name][:] for name in pairs.column_names if name.endswith("logps")},
        "rates": trainer.violation_rates,
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "weights": flat(trainer.model),
    }


def run(task, folder, device="cpu"):
    """What one of the processes does; what it saw is written to a file of its own."""
    tiny = runpy.run_path(str(HERE.with_name("conftest.py")))["tiny"].__wrapped__()
    torch.set_num_threads(1)
    folder = Path(folder)
    trainer = build(tiny, folder, task, 2, device)
    found = {"before": seen(trainer)}
    trainer.train()
    found |= {"after": seen(trainer), "flips": trainer.evaluate()["eval_flip_rate"]}
    found |= {"type": str(trainer.accelerator.distributed_type)}
    found |= {"processes": trainer.accelerator.num_processes, "layers": len(quantized_layers(trainer.model))}
    if task == "resume":
        again = build(tiny, folder, task, 2, device)
        middle = trainer.state.global_step // 2
        again.train(resume_from_checkpoint=str(folder / f"checkpoint-{middle}"))
        found["again"] = flat(again.model)
    torch.save(found, folder / f"found_{trainer.accelerator.process_index}.pt")


def launch(task, folder, *options, device="cpu"):
    """Runs ``task`` in two processes and returns what each found."""
    script = folder / "script.py"
    script.write_text("import sys, runpy; runpy.run_path(sys.argv[1])['run'](*sys.argv[2:])")
    command = [sys.executable, "-m"]
    if options:
        command += ["accelerate.commands.launch", *options, "--num_processes", "2", "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    else:  # `accelerate launch --cpu` starts a single process unless it has MPI
        command += ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(script), str(HERE), task, str(folder), device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[2])}
    environment["ACCELERATE_USE_CPU"] = str(device == "cpu").lower()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [torch.load(folder / f"found_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [one["processes"] for one in found] == [2, 2]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pairs", "precomputed", "distilled"])
def test_two_processes_with_batches_of_two_are_one_with_a_batch_of_four(tmp_path, tiny, task):
    (tmp_path / "two").mkdir()
    one, other = launch(task, tmp_path / "two")
    trainer = build(tiny, tmp_path / "one", task, 4)
    alone = {"before": seen(trainer)}
    trainer.train()
    alone["after"] = seen(trainer)
    assert one["flips"] == other["flips"] == pytest.approx(trainer.evaluate()["eval_flip_rate"])
    assert one["type"] == "DistributedType.MULTI_CPU"
    assert one["before"]["pairs"] == other["before"]["pairs"] == alone["before"]["pairs"]
    assert one["before"]["rates"] == other["before"]["rates"] == alone["before"]["rates"]
    for name, values in alone["before"]["scores"].items():
        assert one["before"]["scores"][name] == other["before"]["scores"][name]
        assert one["before"]["scores"][name] == pytest.approx(values, abs=1e-5)
    for when in ("before", "after"):
        assert torch.equal(one[when]["weights"], other[when]["weights"])
        torch.testing.assert_close(one[when]["weights"], alone[when]["weights"], rtol=1e-5, atol=1e-6)
    assert not torch.equal(one["before"]["weights"], one["after"]["weights"])
    losses = [entry["loss"] for entry in alone["after"]["logs"]]
    assert [entry["loss"] for entry in one["after"]["logs"]] == pytest.approx(losses, rel=1e-5)
    rates = [entry["flip_rate"] for entry in alone["after"]["logs"] if "flip_rate" in entry]
    assert [e["flip_rate"] for e in one["after"]["logs"] if "flip_rate" in e] == pytest.approx(rates)


@pytest.mark.slow
def test_two_processes_have_the_same_rounds(tmp_path):
    one, other = launch("rounds", tmp_path)
    assert one["before"]["pairs"] == other["before"]["pairs"] != one["after"]["pairs"]
    assert one["after"]["pairs"] == other["after"]["pairs"]
    assert one["after"]["rates"] == other["after"]["rates"]
    assert torch.equal(one["after"]["weights"], other["after"]["weights"])


@pytest.mark.slow
def test_two_processes_resume_in_the_second_round(tmp_path):
    for found in launch("resume", tmp_path):
        assert torch.equal(found["again"], found["after"]["weights"])
    assert (tmp_path / "checkpoint-1" / "round.json").exists()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not TWO_GPUS, reason="needs two CUDA devices")
def test_fully_sharded_models_learn(tmp_path):
    """On a CPU accelerate falls back to DDP without a word: only the type it says it has counts."""
    options = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
    options += ["--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer"]
    one, other = launch("pairs", tmp_path, *options, device="cuda")
    assert one["type"] == other["type"] == "DistributedType.FSDP"
    assert one["before"]["pairs"] == other["before"]["pairs"]
    assert one["after"]["logs"] == other["after"]["logs"]
