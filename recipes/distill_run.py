"""A run of :mod:`.minillm`: phases of training one after the other, each resumed where it was left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from omegaconf import DictConfig
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback
from trl import SFTTrainer

from .conf.minillm_schema import check
from .distill_checks import check_models, check_vocabularies
from .distill_data import load_data
from .distill_methods import method_config, method_trainer, sft_config
from .distill_models import load_model, load_tokenizer, reload
from .run_folder import RunFolder
from .trainer_recorder import Recorder, last_checkpoint


class Run:
    """All phases of a run.

    Args:
        cfg: the settings.
        folder: where everything goes; what it holds already is not done again.

    Raises:
        ValueError: the settings make no sense.
    """

    def __init__(self, cfg: DictConfig, folder: RunFolder) -> None:
        check(cfg)
        try:  # wrong settings of a method end it before it begins
            method_config(cfg, str(folder.path / "method"))
        except TypeError as error:
            raise ValueError(f"method.args: {error}") from None
        self.cfg, self.folder = cfg, folder
        torch.set_num_threads(cfg.threads)
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
        file = folder.path / "progress.json"
        #: phase -> its updates and the seconds they took
        self.progress: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
        if not self.progress:  # a run that goes on was looked at when it began
            check_models(cfg)
        self.tokenizer = load_tokenizer(cfg)
        if not self.progress:
            check_vocabularies(cfg, self.tokenizer)
        self.data = load_data(cfg, self.tokenizer)

    def teacher(self) -> PreTrainedModel:
        """The teacher, trained if it is to be."""
        return self._chain("teacher", ("teacher_text", "teacher"))

    def warm_start(self) -> PreTrainedModel:
        """The student that every method begins with."""
        return self._chain("student", ("student_text", "sft"))

    def student(self, teacher: PreTrainedModel) -> PreTrainedModel:
        """The student after the method."""
        if "method" in self.progress:
            return reload(self.folder.path / "method")
        student = self.warm_start()

        def trainer(output: str, callbacks: list[TrainerCallback]) -> Trainer:
            return method_trainer(self.cfg, output, student, teacher, self.tokenizer, self.data, callbacks)

        return self._train("method", self.cfg.updates, trainer)

    def _chain(self, who: str, phases: tuple[str, ...]) -> PreTrainedModel:
        """What the last of the phases leaves, going on from those that are done."""
        done = [phase for phase in phases if phase in self.progress]
        model = reload(self.folder.path / done[-1]) if done else load_model(self.cfg, who, self.tokenizer)
        for phase in phases[phases.index(done[-1]) + 1 if done else 0 :]:
            settings = self.cfg[phase]
            if settings.steps == 0:
                continue
            rows = self.data.texts if phase.endswith("_text") else self.data.finetuning
            assert rows is not None  # see check
            rows = rows.select(range(min(len(rows), settings.steps * settings.batch_size)))

            def trainer(output: str, callbacks: list[TrainerCallback]) -> Trainer:
                args = sft_config(self.cfg, output, settings)  # noqa: B023 (called at once)
                return SFTTrainer(
                    model=model,  # noqa: B023
                    args=args,
                    train_dataset=rows,  # noqa: B023
                    processing_class=self.tokenizer,
                    callbacks=callbacks,
                )

            model = self._train(phase, settings.steps, trainer)
        return model

    def _train(
        self, phase: str, steps: int, make: Callable[[str, list[TrainerCallback]], Trainer]
    ) -> PreTrainedModel:
        """Train a phase to its end, from its last checkpoint if there is one, and save its model."""
        output = self.folder.path / f"{phase}-checkpoints"
        last = last_checkpoint(output)
        before = int(sum(done["updates"] for done in self.progress.values()))
        recorder = Recorder(self.folder, phase, before, last)
        trainer = make(str(output), [recorder])
        trainer.remove_callback(PrinterCallback)  # the recorder prints
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        recorder.events.close()
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(self.folder.path / phase)
        self.tokenizer.save_pretrained(self.folder.path / phase)
        self.progress[phase] = {"updates": steps, **recorder.now()}
        self.folder.write("progress.json", json.dumps(self.progress, indent=2) + "\n")
        shutil.rmtree(output)
        model.gradient_checkpointing_disable()
        return model.eval()


def seconds(progress: dict[str, dict[str, float]], name: str) -> float:
    """Of all phases together."""
    return float(np.sum([phase[name] for phase in progress.values()]))
