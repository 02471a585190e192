"""Worlds with a hundred to a billion discrete actions, registered with gymnasium under ``LargeAction/``.

    import gymnasium as gym
    env = gym.make("envs:LargeAction/ScatterChain-v0", n=10_000)
    envs = gym.make_vec("envs:LargeAction/ScatterChain-v0", num_envs=32, n=10_000)

Apart from them stand ``Align/ReturnDial-v0``, with one continuous action, for policies told a return, and
``Glasses-CopyFirst-v0``, ``Glasses-CopyLast-v0`` and ``Glasses-Count-v0``, for policies that remember.

Importing this module registers names and imports gymnasium alone: no torch, no MuJoCo.
"""

from typing import Any

from gymnasium.envs.registration import register, registry


def world_ids() -> list[str]:
    """The ids of the worlds with oracles, in the order of their registration: all but continuous control."""
    ids = [id for id in registry if id.startswith("LargeAction/")]
    return [id for id in ids if registry[id].entry_point == "envs.gymnasium:LargeActionEnv"]


# The environments check calls and actions and count steps themselves; set_state may stand for a reset.
_BARE: dict[str, Any] = {"order_enforce": False, "disable_env_checker": True}


def _register(name: str, world: str, reward_threshold: float | None = None, **kwargs: Any) -> None:
    """Register a world, ``"module:Class"`` in `envs.dynamics`, with arguments of its own."""
    register(
        id=f"LargeAction/{name}",
        entry_point="envs.gymnasium:LargeActionEnv",
        vector_entry_point="envs.gymnasium:LargeActionVectorEnv",
        reward_threshold=reward_threshold,
        **_BARE,
        kwargs={"world": world, **kwargs},
    )


# Thresholds: 0.95 of what the oracle brings, or 1.05 of it where returns are negative.

_SCATTER = "scatter_chain:ScatterChain"
_register("ScatterChain-v0", _SCATTER)
_register("ScatterChain-1K-v0", _SCATTER, reward_threshold=43.7, n=1_000)
_register("ScatterChain-1M-v0", _SCATTER, reward_threshold=43.7, n=1_000_000)
_register("ScatterChain-1G-v0", _SCATTER, reward_threshold=43.7, n=1_000_000_000)
# Negative controls: hardly any of the actions advance, or hardly any pay.
_register("ScatterChainHard-1M-v0", _SCATTER, reward_threshold=43.7, n=1_000_000, traps=0.20, advance=0.01)
_register("Needle-1M-v0", _SCATTER, reward_threshold=43.7, n=1_000_000, kappa=1_000_000.0)

_MAZE = "actuator_maze:ActuatorMaze"
_register("ActuatorMaze-v0", _MAZE)
_register("ActuatorMaze-2p10-v0", _MAZE, reward_threshold=0.81, k=10)
_register("ActuatorMaze-2p20-v0", _MAZE, reward_threshold=0.81, k=20)
_register("ActuatorMaze-2p30-v0", _MAZE, reward_threshold=0.81, k=30)
_register("ActuatorMazeWalls-2p20-v0", _MAZE, reward_threshold=0.75, k=20, walls=2)

_DIAGONAL = "diagonal_grid:DiagonalGrid"
_register("DiagonalGrid-v0", _DIAGONAL)
_register("DiagonalGrid-1M-v0", _DIAGONAL, reward_threshold=-9.42, dims=10)
_register("DiagonalGrid-1G-v0", _DIAGONAL, reward_threshold=-13.9, dims=15)
# In this layout the diagonal is blocked: the optimum is not the one action that is best without pits.
_register("DiagonalGridPits-1M-v0", _DIAGONAL, reward_threshold=-11.7, dims=10, pits=0.1, layout=2)

_MASTERMIND = "mastermind:Mastermind"
_register("Mastermind-v0", _MASTERMIND)
_register("Mastermind-4x6-v0", _MASTERMIND, reward_threshold=-4.59, pegs=4, colours=6)
_register("Mastermind-6x10-v0", _MASTERMIND, reward_threshold=-7.03, pegs=6, colours=10)
_register("Mastermind-9x10-v0", _MASTERMIND, reward_threshold=-8.76, pegs=9, colours=10)

_REPLENISHMENT = "joint_replenishment:JointReplenishment"
_register("JointReplenishment-v0", _REPLENISHMENT)
_register("JointReplenishment-1M-v0", _REPLENISHMENT, reward_threshold=-190.9, products=6, fixed_cost=600.0)
_register("JointReplenishmentSeparable-1M-v0", _REPLENISHMENT, reward_threshold=-26.5, fixed_cost=0.0)
_register("JointReplenishment-1G-v0", _REPLENISHMENT, reward_threshold=-158.1, products=9, fixed_cost=600.0)

_LQR = "discrete_lqr:DiscreteLQR"
_register("DiscreteLQR-v0", _LQR)
_register("DiscreteLQR-1M-v0", _LQR, reward_threshold=-0.667, dims=2, bins=1001)
_register("DiscreteLQR-1G-v0", _LQR, reward_threshold=-0.724, dims=3, bins=1001, states=3)
_register("DiscreteLQR-6D-v0", _LQR, reward_threshold=-0.837, dims=6, bins=11, states=6)

_PENDULUM = "pendulum_bins:PendulumBins"
_register("PendulumBins-v0", _PENDULUM)
_register("PendulumBins-1M-v0", _PENDULUM, reward_threshold=-8.91, n=1_000_001)
_register("PendulumBins-1G-v0", _PENDULUM, reward_threshold=-8.91, n=1_000_000_001)

# The optimum is 0, and random play brings -10: 5% of the way, where 1.05 times 0 would ask for perfection.
_SCHEDULE = "batch_schedule:BatchSchedule"
_register("BatchSchedule-v0", _SCHEDULE)
_register("BatchSchedule-10-v0", _SCHEDULE, reward_threshold=-0.5, jobs=10)
_register("BatchSchedule-12-v0", _SCHEDULE, reward_threshold=-0.5, jobs=12)
_register("BatchSchedule-13-v0", _SCHEDULE, reward_threshold=-0.5, jobs=13)
_register("BatchScheduleSetup-10-v0", _SCHEDULE, reward_threshold=-1.26, jobs=10, families=4)

_SLATE = "slate_rec:SlateRec"
_register("SlateRec-v0", _SLATE)
_register("SlateRec-100x3-v0", _SLATE, reward_threshold=8.36, items=100, slate=3)
_register("SlateRec-1000x3-v0", _SLATE, reward_threshold=11.65, items=1000, slate=3)
_register("SlateRecSatiation-100x3-v0", _SLATE, reward_threshold=6.10, items=100, slate=3, satiation=True)
_register("Catalogue-1M-v0", _SLATE, reward_threshold=15.1, items=1_000_000, slate=1)
# No threshold: its oracle takes minutes a step.
_register("Catalogue-1G-v0", _SLATE, items=1_000_000_000, slate=1)

# MuJoCo with its box of controls cut into bins; needs mujoco only when made. The thresholds are MuJoCo's own.
for _name, _threshold, _kwargs in (
    ("DiscretizedMujoco-v5", None, {}),
    ("InvertedPendulum-1M-v5", 950.0, {"env_id": "InvertedPendulum-v5", "bins": 1_000_000}),
    ("HalfCheetah-1M-v5", 4800.0, {"env_id": "HalfCheetah-v5", "bins": 10}),
    ("Hopper-1M-v5", 3800.0, {"env_id": "Hopper-v5", "bins": 100}),
    ("Walker2d-1M-v5", None, {"env_id": "Walker2d-v5", "bins": 10}),
    ("Ant-6p8-v5", 6000.0, {"env_id": "Ant-v5", "bins": 6}),
    ("Humanoid-3p17-v5", None, {"env_id": "Humanoid-v5", "bins": 3}),
):
    register(
        id=f"LargeAction/{_name}",
        entry_point="envs.control:DiscretizeFlat",
        reward_threshold=_threshold,
        **_BARE,
        kwargs=_kwargs,
    )

# A return to be reached, not a high one: no threshold.
register(
    id="Align/ReturnDial-v0",
    entry_point="envs.return_dial:ReturnDial",
    vector_entry_point="envs.return_dial:ReturnDialVector",
    **_BARE,
)

# Sequences shown token by token, then a question. Thresholds: 0.95 of 1, what the right answer pays.
for _name, _kind in (("CopyFirst", "copy_first"), ("CopyLast", "copy_last"), ("Count", "count")):
    register(
        id=f"Glasses-{_name}-v0",
        entry_point="envs.sequence_tasks.streams:SequenceStream",
        reward_threshold=0.95,
        **_BARE,
        kwargs={"kind": _kind},
    )
