"""On a GPU: everything stays there, and learns what the CPU learns."""

import pytest
import torch

from extensions.tabular import (
    DoubleQLearning,
    QLearning,
    Sarsa,
    StochDoubleQ,
    StochQ,
    StochSarsa,
    VisitCount,
)
from extensions.tabular.randomness import Stream, candidates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
ALL = [QLearning, DoubleQLearning, Sarsa, StochQ, StochDoubleQ, StochSarsa]


def test_the_same_numbers_are_drawn():
    on_cpu, on_gpu = (
        Stream(torch.arange(7), 2, torch.device(device)).uniform(5, 40, 11) for device in ("cpu", "cuda")
    )
    assert torch.equal(on_gpu.cpu(), on_cpu)
    assert torch.equal(candidates(on_gpu, 200).cpu(), candidates(on_cpu, 200))


@pytest.mark.parametrize("table", ["dense", "sparse"])
@pytest.mark.parametrize("rate", [0.2, VisitCount(0.8)])
@pytest.mark.parametrize("cls", ALL)
def test_a_hundred_runs_learn_what_they_learn_on_the_cpu(cls, rate, table, mdp):
    if table == "sparse" and cls in (QLearning, DoubleQLearning, Sarsa):
        pytest.skip("the exact ones have dense tables only")
    # without noise on the rewards, whose logarithm and cosine differ in the last bit
    cpu, gpu = (
        cls(mdp(100, device=device, reward_std=0.0), rate, seed=0, table=table).learn(200)
        for device in ("cpu", "cuda:0")
    )
    assert gpu.device.type == "cuda"
    assert (gpu._table._flat if table == "dense" else gpu._table._values).is_cuda
    ids, rows = torch.arange(12).expand(500, -1), torch.arange(500)
    values = [a._table.read(rows.to(a.device), ids.to(a.device)).cpu() for a in (cpu, gpu)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-12)


def test_a_file_moves_between_devices(mdp, tmp_path):
    agent = StochQ(mdp(5, device="cuda:0"), seed=0).learn(100)
    agent.save(tmp_path / "agent")
    on_cpu = StochQ.load(tmp_path / "agent", mdp(5))
    assert torch.equal(on_cpu._table.values, agent._table.values.cpu())
    on_gpu = StochQ.load(tmp_path / "agent", mdp(5, device="cuda:0"))
    assert torch.equal(on_gpu.learn(10)._table.values[:, :1].isfinite().all(), torch.tensor(True).cuda())


def test_a_file_is_loaded_onto_a_gpu_without_an_environment(mdp, tmp_path):
    agent = StochQ(mdp(5), seed=0).learn(100)
    agent.save(tmp_path / "agent")
    on_gpu = StochQ.load(tmp_path / "agent", device="cuda")
    assert on_gpu._table.values.is_cuda
    states = [[s] for s in range(5)]
    assert (on_gpu.predict(states)[0] == agent.predict(states)[0]).all()


def test_cuda_is_one_device_to_the_environment_and_the_agent(mdp):
    agent = StochQ(mdp(5, device="cuda"), seed=0, device="cuda").learn(10)
    assert agent.device == agent.env.device == torch.device("cuda", torch.cuda.current_device())
