"""Two processes learn what one would from the same answers. On the CPU they are joined by DDP over gloo."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__)
TWO_GPUS = torch.cuda.is_available() and torch.cuda.device_count() > 1


def answer(prompt, salt):
    """What is said to a prompt in these tests: 1 to 6 words and the end, a function of the prompt alone."""
    draw = torch.Generator().manual_seed(hash((*prompt, salt)) % 2**31)
    n = int(torch.randint(1, 7, (1,), generator=draw))
    return [*torch.randint(8, 43, (n,), generator=draw).tolist(), 1]


def build(tiny, folder, device, batch, fixed, dtype=torch.float64, **settings):
    """A trainer of float64 models. If ``fixed`` its answers do not depend on the order they are drawn in."""
    models = [build(seed, layers=2).to(dtype) for seed, build in enumerate((tiny.gpt2, tiny.gpt2))]
    trainer = tiny.trainer(
        folder,
        *models,
        data=tiny.prompts(32),
        others={"pretraining_dataset": tiny.texts(32)},
        per_device_train_batch_size=batch,
        use_cpu=device == "cpu",
        **settings,
    )
    if fixed:
        trainer._generate_single_turn = lambda prompts, *_: [answer(p, trainer._step) for p in prompts]
    return trainer


def gradients_of(trainer):
    seen = []
    create = trainer.create_optimizer

    def recorded(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        optimizer.register_step_pre_hook(
            lambda *_: seen.append(
                torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
            )
        )
        return optimizer

    trainer.create_optimizer = recorded
    return seen


def in_order(tiny, settings):
    """All prompts of an update are in one batch a process, so that one process sees the same updates."""
    return {**settings, "steps_per_generation": 1, "num_iterations": 2, "optim": "sgd", "learning_rate": 1e-3}


def run(task, folder, device="cpu"):
    """What one of the processes does; what it saw is written to a file of its own."""
    tiny = runpy.run_path(str(HERE.with_name("conftest.py")))["tiny"].__wrapped__()
    torch.set_num_threads(1)
    folder = Path(folder)
    found = {}
    if task.startswith("gradient"):
        settings = in_order(tiny, dict(SETTINGS[task.removeprefix("gradient ")], max_steps=4))
        trainer = build(tiny, folder, device, 4, True, **settings)
        found["gradients"] = gradients_of(trainer)
        trainer.train()
    elif task == "stop":
        trainer = build(tiny, folder, device, 4, False, torch.float32, teacher_mix_method="mixture")
        if trainer.accelerator.process_index == 1:
            torch.nn.init.constant_(trainer.teacher_model.transformer.ln_f.weight, float("nan"))
        try:
            trainer.train()
        except FloatingPointError as error:
            found["said"] = str(error)
    elif task == "resume":
        settings = {"max_steps": 6, "steps_per_generation": 2, "num_iterations": 2, "save_steps": 3}
        ends = []
        for resume in (None, str(folder / "checkpoint-3")):
            trainer = build(tiny, folder, device, 2, False, torch.float32, save_strategy="steps", **settings)
            trainer.train(resume_from_checkpoint=resume)
            ends.append(flat(trainer.model))
        found["ends"] = ends
    else:
        trainer = build(
            tiny,
            folder,
            device,
            4,
            False,
            torch.float32,
            max_steps=4,
            gradient_checkpointing=True,
            steps_per_generation=2,
            eval_strategy="no",
            log_completions=True,
            teacher_mix_method="coin_flip",
        )
        before = flat(trainer.model)
        said = []
        score = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = lambda rows: said.append(score(rows)) or said[-1]
        trainer.train()
        found |= {"before": before, "said": said[0]["completion_ids"], "prompts": said[0]["prompt_ids"]}
        found["logs"] = [entry for entry in trainer.state.log_history if "loss" in entry]
        found["type"] = str(trainer.accelerator.distributed_type)
    found["after"] = flat(trainer.model)
    found["processes"] = trainer.accelerator.num_processes
    torch.save(found, folder / f"found_{trainer.accelerator.process_index}.pt")


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).cpu()


SETTINGS = {
    "paper": {"mode": "paper"},
    "whitened, by token": {"mode": "reference", "whiten": "masked"},
    # under coin flips it depends on who shared coins, and so on the number of processes
    "leave one out": {"mode": "modern", "teacher_mix_method": "mixture"},
    "position, by sequence": {"mode": "modern", "baseline": "position", "normalization": "sequence"},
}


def launch(task, folder, *options, device="cpu"):
    """Runs ``task`` in two processes and returns what each found."""
    code = "import sys, runpy; runpy.run_path(sys.argv[1])['run'](*sys.argv[2:])"
    script = folder / "script.py"
    script.write_text(code)
    command = [sys.executable, "-m"]
    if options:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["accelerate.commands.launch", *options, "--num_processes", "2", "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]
    else:  # `accelerate launch --cpu` starts a single process unless it has MPI
        # a port of its own choice: another run beside it may take one that is free now
        command += ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(script), str(HERE), task, str(folder), device]
    root = str(HERE.parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    environment["ACCELERATE_USE_CPU"] = str(device == "cpu").lower()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [torch.load(folder / f"found_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [one["processes"] for one in found] == [2, 2]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_two_processes_with_batches_of_four_are_one_with_a_batch_of_eight(tmp_path, tiny, kind):
    """The gradient that is applied, over rollouts, weights, baselines, whitening and text, step by step."""
    (tmp_path / "two").mkdir()
    one, other = launch(f"gradient {kind}", tmp_path / "two")
    settings = in_order(tiny, dict(SETTINGS[kind], max_steps=4))
    trainer = build(tiny, tmp_path / "one", "cpu", 8, True, **settings)
    alone = gradients_of(trainer)
    trainer.train()
    assert len(alone) == len(one["gradients"]) == 4
    for single, first, second in zip(alone, one["gradients"], other["gradients"], strict=True):
        assert torch.equal(first, second)
        assert single.norm() > 0
        assert (single - first).norm() <= 1e-6 * single.norm()
    torch.testing.assert_close(one["after"], flat(trainer.model), rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_two_processes_draw_different_answers_and_end_with_the_same_student(tmp_path):
    one, other = launch("train", tmp_path)
    assert one["type"] == "DistributedType.MULTI_CPU"
    assert torch.equal(one["before"], other["before"])
    assert torch.equal(one["after"], other["after"])
    assert not torch.equal(one["before"], one["after"])
    assert one["prompts"].tolist() != other["prompts"].tolist()
    assert one["said"].tolist() != other["said"].tolist()
    assert one["logs"][0]["minillm/reverse_kl"] > 0.0
    assert list((tmp_path / "completions").glob("*.parquet"))


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_a_rollout(tmp_path):
    for found in launch("resume", tmp_path):
        assert torch.equal(*found["ends"])


@pytest.mark.slow
def test_nan_in_the_answers_of_one_process_stops_both(tmp_path):
    one, other = launch("stop", tmp_path)
    assert "not finite (on another process)" in one["said"]
    assert "not finite (the teacher's logits are NaN" in other["said"]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not TWO_GPUS, reason="needs two CUDA devices")
@pytest.mark.parametrize("version", ["1", "2"])
def test_fully_sharded_models_learn(tmp_path, version):
    """On a CPU accelerate falls back to DDP without a word: only the type it says it has counts."""
    options = ["--use_fsdp", "--fsdp_version", version, "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
    options += ["--fsdp_transformer_layer_cls_to_wrap", "GPT2Block", "--fsdp_state_dict_type"]
    options += ["SHARDED_STATE_DICT"]
    one, other = launch("train", tmp_path, *options, device="cuda")
    assert one["type"] == other["type"] == "DistributedType.FSDP"
    assert one["logs"] == other["logs"]
    assert one["logs"][0]["loss"] != one["logs"][-1]["loss"]
