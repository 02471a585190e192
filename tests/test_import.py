"""What importing costs, who may import whom, and that it is ours that is imported; in fresh interpreters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def fresh(code, cwd=None):
    """What ``code``, in a fresh interpreter, prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd)
    return json.loads(done.stdout)


def loaded_by(module):
    """Modules that importing ``module`` loads, itself included."""
    return set(
        fresh(
            "import json, sys; before = set(sys.modules);"
            f"import {module};"
            "print(json.dumps(sorted(set(sys.modules) - before)))"
        )
    )


def tops(modules):
    return {name.split(".")[0] for name in modules}


def test_importing_extensions_loads_nothing_else():
    assert loaded_by("extensions") == {"extensions"}


# That extensions.sb3 loads neither trl nor torchrl nor transformers is in tests/sb3/test_contract.py.
@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("extensions.sb3", {"tensordict", "peft", "datasets", "mujoco", "hydra", "envs", "recipes"}),
        (
            "extensions.stochmax",
            {"stable_baselines3", "gymnasium", "tensordict", "torchrl", "envs", "recipes"},
        ),
        (
            "extensions.tabular",
            {"stable_baselines3", "tensordict", "torchrl", "trl", "transformers", "envs", "recipes"},
        ),
        (
            "extensions.optim",
            {"stable_baselines3", "gymnasium", "tensordict", "torchrl", "transformers", "envs", "recipes"},
        ),
        (
            "extensions.trl",
            {"stable_baselines3", "tensordict", "torchrl", "mujoco", "hydra", "envs", "recipes"},
        ),
        (
            "extensions.torchrl",
            # torchrl.objectives loads mujoco where it is installed
            {"stable_baselines3", "trl", "transformers", "hydra", "envs", "recipes"},
        ),
        (
            "extensions.glasses",
            {"tensordict", "torchrl", "trl", "transformers", "matplotlib", "gymnasium", "envs", "recipes"},
        ),
    ],
)
def test_a_room_does_not_load_what_it_can_do_without(module, strangers):
    loaded = tops(loaded_by(module))
    assert "torch" in loaded
    assert not loaded & strangers


@pytest.mark.parametrize(("one", "other"), [("stochmax", "optim"), ("optim", "stochmax")])
def test_stochmax_and_optim_do_not_import_each_other(one, other):
    assert f"extensions.{other}" not in loaded_by(f"extensions.{one}")


@pytest.mark.parametrize("module", ["extensions", "extensions.sb3", "envs", "recipes"])
@pytest.mark.parametrize("where", ["checkout", "elsewhere"])
def test_ours_is_what_is_imported(module, where, tmp_path):
    """Other distributions have packages of these names, too."""
    path = fresh(
        f"import json, {module}; print(json.dumps({module}.__file__))",
        cwd=ROOT if where == "checkout" else tmp_path,
    )
    assert Path(path).resolve() == ROOT / module.replace(".", "/") / "__init__.py"
