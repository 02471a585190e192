"""StochDQN learns something on every world, and SB3's own agents run on their small sizes."""

import gymnasium as gym
import pytest
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

import envs
from extensions.sb3 import StochDQN
from extensions.stochmax import ActionFeatures

WORLD_IDS = envs.world_ids()
SMALL = {  # about a thousand actions
    "ScatterChain-v0": {"n": 1000},
    "DiscreteLQR-v0": {"dims": 2, "bins": 31},
    "PendulumBins-v0": {"n": 1001},
    "ActuatorMaze-v0": {"k": 10},
    "SlateRec-v0": {"items": 10, "slate": 3},
    "JointReplenishment-v0": {"products": 3},
    "Mastermind-v0": {"pegs": 4, "colours": 6},
    "BatchSchedule-v0": {"jobs": 6},
    "DiagonalGrid-v0": {"dims": 5},
}


def parameters(agent):
    return [p.detach().clone() for p in agent.policy.parameters()]


@pytest.mark.parametrize("id", WORLD_IDS)
def test_stoch_dqn(id):
    env = gym.make(id)
    world = env.unwrapped.dynamics
    # Tables would not fit: there the network takes the action as an input.
    codec = ActionFeatures(world.n, world.action_features) if world.n > 10**7 else None
    agent = StochDQN(
        "MlpPolicy",
        env,
        learning_starts=20,
        train_freq=4,
        batch_size=8,
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
        action_codec=codec,
    )
    before = parameters(agent)
    agent.learn(60)
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters(agent), strict=True))
    action, _ = agent.predict(env.reset(seed=0)[0], deterministic=True)
    assert 0 <= action < env.action_space.n


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("agent", ["DQN", "PPO"])
def test_sb3s_own_agents(name, agent):
    venv = make_vec_env(f"LargeAction/{name}", n_envs=2, seed=0, env_kwargs=SMALL[name])
    assert 500 <= venv.action_space.n <= 1500
    short = {"learning_starts": 20, "batch_size": 8} if agent == "DQN" else {"n_steps": 32, "n_epochs": 1}
    model = getattr(sb3, agent)(
        "MlpPolicy", venv, policy_kwargs={"net_arch": [16]}, seed=0, device="cpu", **short
    )
    before = parameters(model)
    model.learn(96)
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_sb3s_check_env(name):
    check_env(gym.make(f"LargeAction/{name}", **SMALL[name]))


def test_small_sizes_are_of_every_world():
    assert set(SMALL) == {id.removeprefix("LargeAction/") for id in WORLD_IDS if "-" not in id[:-3]}
