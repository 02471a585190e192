"""What a Trainer's run leaves beside its checkpoints: a table of metrics, events, and the time it took."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from .run_folder import MetricsTable, RunFolder

CLOCKS = "clocks.json"
#: of what trainers log: says nothing of the training, differs from run to run, or counts anew when resumed
NOT_LOGGED = (
    *("train_", "total_flos", "step_time", "epoch", "num_tokens"),
    *("runtime", "samples_per_second", "steps_per_second"),
)


class Recorder(TrainerCallback):
    """Writes what a trainer logs to the run's table and events, and keeps its time across interruptions.

    Args:
        folder: of the run.
        phase: the first part of the names of its metrics.
        before: updates of earlier phases.
        resumed: the Trainer's checkpoint that the phase goes on from, if it does.
    """

    def __init__(self, folder: RunFolder, phase: str, before: int, resumed: Path | None) -> None:
        self.phase, self.before = phase, before
        self.clocks = {"wall_s": 0.0, "cpu_s": 0.0}
        done = before
        if resumed is not None:
            self.clocks = json.loads((resumed / CLOCKS).read_text())
            done += int(resumed.name.rsplit("-", 1)[1])
        self.table = MetricsTable(folder, done)
        self.events = SummaryWriter(str(folder.path), purge_step=done + 1)
        self.began = time.perf_counter(), time.process_time()

    def now(self) -> dict[str, float]:
        """Seconds of the phase so far, its preparation counted in."""
        wall, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        return {"wall_s": self.clocks["wall_s"] + wall, "cpu_s": self.clocks["cpu_s"] + cpu}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        values = {
            f"{self.phase}/{name}": value
            for name, value in (logs or {}).items()
            if isinstance(value, int | float) and not name.removeprefix("eval_").startswith(NOT_LOGGED)
        }
        if not values:
            return
        self.table.add(self.before + state.global_step, values)
        for name, value in values.items():
            self.events.add_scalar(name, value, self.before + state.global_step)
        if f"{self.phase}/loss" in values:
            print(f"{self.phase}: update {state.global_step:,}, loss {logs['loss']:.4f}", flush=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (checkpoint / CLOCKS).write_text(json.dumps(self.now()))


def last_checkpoint(output: Path) -> Path | None:
    """The Trainer's newest checkpoint in a folder that is whole; one that is not is removed."""
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    if last is not None and not (Path(last) / CLOCKS).exists():  # killed while it was saved
        shutil.rmtree(last)
        last = get_last_checkpoint(str(output))
    return None if last is None else Path(last)
