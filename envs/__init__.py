"""Worlds with a hundred to a billion discrete actions, registered with gymnasium under ``LargeAction/``.

    import gymnasium as gym
    env = gym.make("envs:LargeAction/ScatterChain-v0", n=1_000_000)
    envs = gym.make_vec("envs:LargeAction/ScatterChain-v0", num_envs=32, n=1_000_000)

Importing this module registers names and imports gymnasium alone: no torch, no MuJoCo.
"""

from typing import Any

from gymnasium.envs.registration import register


def _register(name: str, world: str, reward_threshold: float | None = None, **kwargs: Any) -> None:
    """Register a world, ``"module:Class"`` in `envs.dynamics`, with arguments of its own."""
    register(
        id=f"LargeAction/{name}",
        entry_point="envs.gymnasium:LargeActionEnv",
        vector_entry_point="envs.gymnasium:LargeActionVectorEnv",
        reward_threshold=reward_threshold,
        kwargs={"world": world, **kwargs},
    )


# Thresholds are 0.95 of the optimum.
_SCATTER = "scatter_chain:ScatterChain"
_register("ScatterChain-v0", _SCATTER)
_register("ScatterChain-1K-v0", _SCATTER, reward_threshold=43.7, n=1_000)
_register("ScatterChain-1M-v0", _SCATTER, reward_threshold=43.7, n=1_000_000)
_register("ScatterChain-1G-v0", _SCATTER, reward_threshold=43.7, n=1_000_000_000)
# Negative controls: hardly any of the actions advance, or hardly any pay.
_register("ScatterChainHard-1M-v0", _SCATTER, reward_threshold=43.7, n=1_000_000, traps=0.20, advance=0.01)
_register("Needle-1M-v0", _SCATTER, reward_threshold=43.7, n=1_000_000, kappa=1_000_000.0)
