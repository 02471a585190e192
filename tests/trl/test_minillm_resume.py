"""N + N steps are 2N steps, wherever the interruption falls, with every moving part in the checkpoint."""

from itertools import islice

import pytest
import torch
from datasets import Dataset

from extensions.trl.minillm.rollout_sampler import RolloutSampler, RolloutStream


def texts(tiny, n=11, stream=False):
    data = tiny.texts(n)
    return data.to_iterable_dataset() if stream else data


def trained(tiny, folder, steps, stop_at=None, resume=None, stream=False, **settings):
    """Weights and logged losses of a run that is meant for ``steps``, perhaps stopped before."""
    data = tiny.prompts(24)
    trainer = tiny.trainer(
        folder,
        data=data.to_iterable_dataset() if stream else data,
        others={"eval_dataset": data.select(range(2)), "pretraining_dataset": texts(tiny, stream=stream)},
        max_steps=steps,
        save_strategy="steps",
        save_steps=stop_at or steps,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        **settings,
    )
    trainer.train(resume_from_checkpoint=resume)
    losses = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]), losses


# 2 updates a pass, 2 passes a generation, 3 generations an epoch: 12 updates an epoch
@pytest.mark.parametrize(
    "stop_at",
    [
        pytest.param(3, id="in the middle of a pass"),
        pytest.param(6, id="between passes"),
        pytest.param(12, id="between epochs"),
        pytest.param(15, id="in the second epoch"),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, tiny, stop_at):
    rollouts = {"steps_per_generation": 4, "num_iterations": 2}
    whole, losses = trained(tiny, tmp_path / "whole", 18, **rollouts)
    trained(tiny, tmp_path / "parts", 18, stop_at, **rollouts)
    resumed, later = trained(
        tiny, tmp_path / "again", 18, resume=str(tmp_path / "parts" / f"checkpoint-{stop_at}"), **rollouts
    )
    assert torch.equal(whole, resumed)
    keys = ("loss", "minillm/reverse_kl", "minillm/pt_loss", "completions/mean_length", "num_tokens")
    for step in range(stop_at + 1, 19):
        for key in keys:
            assert losses[step].get(key) == later[step].get(key), (step, key)


def test_evaluation_and_logs_between_do_not_move_a_resumed_run(tmp_path, tiny):
    rest = {"mode": "modern", "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 3}
    whole, losses = trained(tiny, tmp_path / "whole", 8, **rest)
    trained(tiny, tmp_path / "parts", 8, 4, **rest)
    resumed, later = trained(
        tiny, tmp_path / "again", 8, resume=str(tmp_path / "parts" / "checkpoint-4"), **rest
    )
    assert torch.equal(whole, resumed)
    # steps 4 to 6, over the checkpoint
    assert losses[6]["minillm/reverse_kl"] == later[6]["minillm/reverse_kl"]


# 24 prompts are three blocks of 8, each for 2 updates: 6 updates a pass over the stream
@pytest.mark.parametrize(("stop_at", "shuffle"), [(3, False), (6, True), (9, False), (9, True)])
def test_streams_resume_too(tmp_path, tiny, stop_at, shuffle):
    """In the first pass over the stream, between passes and in the second."""
    rest = {"stream": True, "steps_per_generation": 4, "num_iterations": 1, "shuffle_dataset": shuffle}
    whole, _ = trained(tiny, tmp_path / "whole", 13, **rest)
    trained(tiny, tmp_path / "parts", 13, stop_at, **rest)
    checkpoint = str(tmp_path / "parts" / f"checkpoint-{stop_at}")
    resumed, _ = trained(tiny, tmp_path / "again", 13, resume=checkpoint, **rest)
    assert torch.equal(whole, resumed)


def test_a_stream_is_read_pass_after_pass_each_in_an_order_of_its_own():
    data = Dataset.from_dict({"x": list(range(7))}).to_iterable_dataset()

    def first(n, shuffle):
        stream = RolloutStream(data, block=3, repeats=2, shuffle=shuffle, seed=0)
        return [row["x"] for row in islice(stream, n)]

    assert first(24, False) == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5] * 2
    order = first(24, True)
    assert order == first(24, True)
    assert order[:3] == order[3:6]
    assert len(set(order[:12])) == len(set(order[12:])) == 6
    assert order[:12] != order[12:]


def test_a_stream_that_does_not_fill_a_generation(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, data=tiny.prompts(15).to_iterable_dataset())
    with pytest.raises(ValueError, match=r"fewer prompts than one generation takes .16 = .* Lower one"):
        trainer.train()


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"processes": 2}, "processes was 2 and is 1"),
        ({"steps_per_generation": 2}, "steps_per_generation was 4 and is 2"),
        ({"num_iterations": 1}, "num_iterations was 4 and is 1"),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size was 4 and is 2"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
            "gradient_accumulation_steps was 1 and is 2",
        ),
        (None, "there is no rollouts_0.pt"),
    ],
    ids=str,
)
def test_a_rollout_of_another_shape_is_not_gone_on_with(tmp_path, tiny, now, said, caplog):
    """Training goes on with new answers, and says so. What the guard has seen is kept if it is there."""
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5}
    tiny.trainer(tmp_path, **settings).train()
    checkpoint = tmp_path / "checkpoint-3"
    path = checkpoint / "rollouts_0.pt"
    if now is None:
        path.unlink()
    elif "processes" in now:
        state = torch.load(path, weights_only=True)
        torch.save({**state, "shape": {**state["shape"], **now}}, path)
        now = {}
    others = {"pretraining_dataset": tiny.texts()}
    trainer = tiny.trainer(tmp_path, others=others, **{**settings, **(now or {})})
    accumulated = trainer.args.gradient_accumulation_steps
    drawn, flipped, read = [], [], []
    coins, batch = trainer._coins, trainer.text.batch
    trainer._coins = lambda start: flipped.append(trainer._turn) or coins(start)
    trainer.text.batch = lambda k: read.append(k) or batch(k)
    look = trainer._guard.look
    trainer._guard.look = lambda signs: drawn.append(dict(trainer._guard.first or {})) or look(signs)
    with caplog.at_level("WARNING"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert f"cannot be gone on with ({said})" in caplog.text
    assert trainer.state.global_step == 5
    # plain text and coins go on, from the batch that prompts are read on from
    assert read == list(range(3 * accumulated, 5 * accumulated))
    assert flipped[0] == (3 * accumulated, 0)
    assert trainer._step == 5 * accumulated
    assert bool(drawn[0]) == (now is not None)


def test_what_is_gone_on_with_is_not_warned_of(tmp_path, tiny, caplog):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5}
    tiny.trainer(tmp_path, **settings).train()
    with caplog.at_level("WARNING"):
        trainer = tiny.trainer(tmp_path, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "gone on with" not in caplog.text
    state = torch.load(tmp_path / "checkpoint-3" / "rollouts_0.pt", weights_only=True)
    assert trainer._guard.first == state["own"]["guard"]["first"]  # no rollout was drawn since
    assert len(trainer._guard.last) == 1


def test_prompts_come_in_blocks_in_an_order_of_their_epoch():
    sampler = RolloutSampler(range(7), block=3, repeats=2, shuffle=True, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler) == 12
    assert first[:3] == first[3:6]
    assert first[6:9] == first[9:]
    assert len(set(first)) == 6
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    assert list(RolloutSampler(range(7), 3, 1, shuffle=False, seed=0)) == list(range(6))
