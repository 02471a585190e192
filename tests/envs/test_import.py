"""Importing the worlds costs little, in a fresh interpreter."""

import subprocess
import sys

import pytest

import envs


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after ``code``."""
    script = f"import sys\n{code}\nprint('\\n'.join({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.split()
    )


HEAVY = {"torch", "mujoco", "matplotlib", "stable_baselines3", "pygame", "extensions", "recipes", "scipy"}
HEAVY |= {"trl", "transformers", "datasets"}


@pytest.mark.parametrize(
    "code",
    [
        "import envs",
        "import gymnasium\n"
        "env = gymnasium.make('envs:LargeAction/ScatterChain-1M-v0', render_mode='rgb_array')\n"
        "env.reset(seed=0)\nenv.step(0)\nenv.render()\n"
        "vector = gymnasium.make_vec('envs:LargeAction/ActuatorMaze-v0', num_envs=2)\n"
        "vector.reset(seed=0)\nvector.step([0, 1])\n",
        "import envs.control",
        "from envs.sequence_tasks import rewards, scratchpad, streams\n"
        "rewards.exact_reward(completions=['1'], answer=['1'], kind=['parity'])\n"
        "scratchpad.CountScratchpadEnv().reset()\n"
        "streams.SequenceStream('count').reset(seed=0)",
        "import envs.dynamics.scatter_chain, envs.dynamics.actuator_maze",
    ],
)
def test_nothing_heavy_is_loaded(code):
    assert not loaded(code) & HEAVY


def test_importing_envs_loads_gymnasium_and_no_more():
    assert loaded("import envs") - loaded("import gymnasium") <= {"envs"}


def test_worlds_need_no_gymnasium():
    assert "gymnasium" not in loaded(
        "import sys, types\n"
        f"package = types.ModuleType('envs'); package.__path__ = {list(envs.__path__)}\n"
        "sys.modules['envs'] = package  # without running its __init__, which registers with gymnasium\n"
        "import envs.dynamics.scatter_chain, envs.dynamics.actuator_maze"
    )
