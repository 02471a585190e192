"""The types of the settings of ``python -m recipes.qdpo``, and what none of them may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from . import checks


@dataclass
class ModelConfig:
    """The model in full precision."""

    #: a name on the hub or a folder of a chat model with its tokenizer; null: `recipes.chat_model`'s, trained
    #: from scratch
    name: str | None = None
    #: of that from scratch: where it is kept for further runs (null: in the run's folder), and its updates
    #: (null: as many as it needs)
    folder: str | None = None
    steps: int | None = None


@dataclass
class DialoguesConfig:
    """`recipes.dialogues`: how many prompts to learn from, to choose a checkpoint by, and to report on."""

    name: str = "dialogues"
    train: int = 768
    valid: int = 64
    test: int = 256
    max_new_tokens: int = 64
    #: of the data; the seed of a run decides on the model and on the order
    seed: int = 0


@dataclass
class PromptsConfig:
    """A data set on the hub or on disk: a .jsonl, .csv or .parquet file, or what ``save_to_disk`` wrote.

    Prompts are strings, or conversations; of a conversation that ends with an answer, all before it.
    """

    name: str = "prompts"
    path: str = MISSING
    split: str = "train"
    column: str = "prompt"
    train: int = 4096
    valid: int = 128
    test: int = 256
    #: longer prompts are left out, in tokens
    max_prompt_length: int = 512
    max_new_tokens: int = 256
    seed: int = 0


@dataclass
class MethodConfig:
    """How the quantized model is led back to its full-precision self."""

    name: str = MISSING
    #: `QDPOConfig`'s loss types and their weights; none: the quantized model as it is
    losses: dict[str, float] = field(default_factory=dict)
    lr: float = 1e-4
    #: of transformers, after a warm-up over the first twentieth
    schedule: str = "cosine"
    #: more settings of `QDPOConfig`
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class QDPORecipeConfig:
    """What ``python -m recipes.qdpo`` takes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: Any = MISSING
    method: MethodConfig = field(default_factory=MethodConfig)
    #: of a weight, and inputs that share a scale (null: one scale per output channel)
    bits: int = 3
    group_size: int | None = None
    #: steps of the optimizer, and replies that are read in each: both of a pair by losses that compare them
    updates: int = 240
    batch_size: int = 8
    #: replies on the device at a time; null: the whole batch
    micro_batch_size: int | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    #: updates between two looks at the validation prompts, each with a checkpoint, of which that with the
    #: fewest flipped tokens is the result
    evaluate_every: int = 80
    #: replies generated, or read without gradients, together
    evaluation_batch_size: int = 64
    #: test, or valid (other prompts than those that choose a checkpoint), for choosing settings
    report_on: str = "test"
    #: where replies are kept; runs that share it do not generate the same ones again. null: in its folder
    pairs_dir: str | None = None
    #: at the end: figures of the quantized model as it was, the packed model, the report card
    before: bool = True
    export: bool = True
    report_card: bool = True
    #: updates between two rows of metrics
    log_every: int = 10
    seed: int = 0
    device: str = "auto"
    #: threads of torch; with one, a run repeats bit for bit on like machines
    threads: int = 1
    #: the whole path in seconds
    smoke: bool = False
    #: the folder of a run to go on with
    resume: str | None = None


def check(cfg: DictConfig) -> None:
    """Refuse settings that make no sense together.

    Raises:
        ValueError: which, and why.
    """
    checks.at_least(
        cfg, ("updates", "batch_size", "evaluate_every", "evaluation_batch_size", "log_every", "threads")
    )
    checks.seed_and_device(cfg)
    if cfg.report_on not in ("valid", "test"):
        raise ValueError(f"report_on={cfg.report_on}: it must be valid or test")
    for name in ("train", "valid", "test", "max_new_tokens"):
        if cfg.data[name] < 1:
            raise ValueError(f"data.{name}={cfg.data[name]}: it must be at least 1")
    if cfg.data.name == "dialogues" and cfg.model.name is not None:
        raise ValueError(
            f"model.name={cfg.model.name}: the words of data=dialogues are those of model=tiny. Give "
            "prompts of your own: data=prompts data.path=FILE"
        )
    if cfg.data.name == "prompts" and cfg.model.name is None:
        raise ValueError(
            "data=prompts needs a model that can read them: model=hf model.name=NAME. model=tiny knows the "
            "words of data=dialogues and no others."
        )
    if cfg.method.losses:
        replies = cfg.micro_batch_size or cfg.batch_size
        if replies < 2 or cfg.batch_size % replies or replies % 2:
            raise ValueError(
                f"batch_size={cfg.batch_size} and micro_batch_size={cfg.micro_batch_size} count replies: "
                "both must be even, for pairs, and the one a multiple of the other"
            )


def register() -> None:
    """Tell Hydra of the schemas."""
    store = ConfigStore.instance()
    store.store(name="schema_qdpo", node=QDPORecipeConfig)
    store.store(group="model", name="schema_qdpo_model", node=ModelConfig)
    store.store(group="data", name="schema_qdpo_dialogues", node=DialoguesConfig)
    store.store(group="data", name="schema_qdpo_prompts", node=PromptsConfig)
    store.store(group="method", name="schema_qdpo_method", node=MethodConfig)
