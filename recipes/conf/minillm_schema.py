"""The types of the settings of ``python -m recipes.minillm``, and what none of them may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from . import checks

METHODS = ("sft", "kd", "seqkd", "gkd", "distillation", "minillm")


@dataclass
class SizeConfig:
    """A model made from scratch: Llama's architecture."""

    layers: int = 2
    width: int = 48
    heads: int = 4


@dataclass
class ModelConfig:
    """Teacher and student: names on the hub or folders of checkpoints; null: from scratch, of a size."""

    teacher: str | None = None
    student: str | None = None
    teacher_size: SizeConfig = field(default_factory=SizeConfig)
    student_size: SizeConfig = field(default_factory=SizeConfig)
    #: what checkpoints are loaded in: float32 or bfloat16 (for training float32 is meant, with bf16=true)
    teacher_dtype: str = "float32"


@dataclass
class InstructionsConfig:
    """`recipes.instructions.Instructions`: how many of its prompts and plain texts."""

    name: str = "instructions"
    train: int = MISSING
    valid: int = MISSING
    test: int = MISSING
    texts: int = MISSING
    #: plain texts among the finetuning of teacher and warm start, for each instruction, so that they are kept
    text_share: float = 0.2
    max_prompt_length: int = 16
    max_completion_length: int = 25
    #: of the data; the seed of a run decides on weights, order and draws
    seed: int = 0


@dataclass
class TableConfig:
    """A data set on the hub or on disk: a .jsonl, .csv or .parquet file, or what ``save_to_disk`` wrote."""

    name: str = MISSING
    path: str = MISSING
    split: str = "train"
    #: columns; an input is what an instruction is about, if anything
    prompt: str = "prompt"
    input: str | None = None
    completion: str = "completion"
    #: none: the prompt as it is; alpaca: "Below is an instruction ... ### Response:"
    template: str = "none"
    valid: int = 500
    test: int = 500
    #: plain text for the pretraining loss: a path as above; null: none
    text: str | None = None
    text_config: str | None = None
    text_split: str = "train"
    text_column: str = "text"
    #: at most so many plain texts
    texts: int = 100_000
    #: longer prompts are left out, in tokens
    max_prompt_length: int = 256
    max_completion_length: int = 256
    seed: int = 0


@dataclass
class PhaseConfig:
    """Some training."""

    #: updates; 0 leaves it out
    steps: int = 0
    lr: float = 1e-3
    batch_size: int = 64
    #: of transformers, after a warm-up over the first twentieth
    schedule: str = "constant_with_warmup"


@dataclass
class MethodConfig:
    """How the student learns from the teacher, after the warm start that all methods share."""

    name: str = MISSING
    lr: float = MISSING
    #: of transformers, after a warm-up over the first twentieth
    schedule: str = "constant_with_warmup"
    #: more settings of the trainer's own configuration
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluationConfig:
    """What is measured at the end."""

    #: valid, for choosing settings, or test
    split: str = "test"
    #: prompts held out, and answers to each
    prompts: int = 256
    samples: int = 8
    #: plain texts held out
    texts: int = 256
    batch_size: int = 512
    #: the same of the warm start and of the teacher
    others: bool = True


@dataclass
class MiniLLMRecipeConfig:
    """What ``python -m recipes.minillm`` takes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: Any = MISSING
    method: MethodConfig = field(default_factory=MethodConfig)
    #: plain text first, for models from scratch
    teacher_text: PhaseConfig = field(default_factory=PhaseConfig)
    teacher: PhaseConfig = field(default_factory=PhaseConfig)
    student_text: PhaseConfig = field(default_factory=PhaseConfig)
    sft: PhaseConfig = field(default_factory=PhaseConfig)
    #: of the method: steps of the optimizer, and prompts in each
    updates: int = MISSING
    batch_size: int = MISSING
    #: batch on one device at a time; null: the whole batch
    micro_batch_size: int | None = None
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    #: updates between two rows of metrics, and two checkpoints
    log_every: int = 20
    save_every: int = 100
    seed: int = 0
    device: str = "auto"
    #: threads of torch; with one, a run repeats bit for bit on like machines
    threads: int = 1
    #: the whole path in seconds
    smoke: bool = False
    #: the folder of a run to go on with
    resume: str | None = None


PHASES = ("teacher_text", "teacher", "student_text", "sft")


def check(cfg: DictConfig) -> None:
    """Refuse settings that make no sense together.

    Raises:
        ValueError: which, and why.
    """
    checks.at_least(cfg, ("updates", "batch_size", "log_every", "save_every", "threads"))
    if cfg.method.name not in METHODS:
        raise ValueError(f"method.name={cfg.method.name}: it must be one of {', '.join(METHODS)}")
    checks.seed_and_device(cfg)
    if cfg.evaluation.split not in ("valid", "test"):
        raise ValueError(f"evaluation.split={cfg.evaluation.split}: it must be valid or test")
    micro = cfg.micro_batch_size
    if micro is not None and (micro < 1 or cfg.batch_size % micro):
        raise ValueError(f"micro_batch_size={micro}: it must divide batch_size={cfg.batch_size}")
    for name in PHASES:
        if cfg[name].steps < 0 or cfg[name].batch_size < 1:
            raise ValueError(f"{name}: steps must be at least 0 and batch_size at least 1")
    for name in ("valid", "test"):
        if cfg.data[name] < 1:
            raise ValueError(f"data.{name}={cfg.data[name]}: it must be at least 1")
    for who in ("teacher", "student"):
        size = cfg.model[f"{who}_size"]
        if cfg.model[who] is None and size.width % (2 * size.heads):
            raise ValueError(
                f"model.{who}_size.width={size.width}: it must be a multiple of twice heads={size.heads}"
            )
    if (cfg.model.teacher is None or cfg.model.student is None) and cfg.data.name != "instructions":
        raise ValueError(
            f"data={cfg.data.name} needs checkpoints: model.teacher and model.student are names on the hub "
            "or folders. From scratch (null) there is only the vocabulary of data=instructions."
        )
    if cfg.data.name == "instructions":
        return
    for name in ("teacher_text", "student_text"):
        if cfg[name].steps and cfg.data.text is None:
            raise ValueError(
                f"{name}.steps={cfg[name].steps}: the data have no plain text. Give data.text, or "
                f"{name}.steps=0, as model=gpt2 has it"
            )


def register() -> None:
    """Tell Hydra of the schemas."""
    store = ConfigStore.instance()
    store.store(name="schema_minillm", node=MiniLLMRecipeConfig)
    store.store(group="model", name="schema_model", node=ModelConfig)
    store.store(group="data", name="schema_instructions", node=InstructionsConfig)
    store.store(group="data", name="schema_table", node=TableConfig)
    store.store(group="method", name="schema_method", node=MethodConfig)
