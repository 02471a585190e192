"""What checkpoints must have in common, and room for; looked at before anything is trained."""

from __future__ import annotations

import warnings
from pathlib import Path

from omegaconf import DictConfig
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from extensions.trl.minillm.teacher import different_tokens

from .distill_models import MAX_LENGTH, first_line, readable

WEIGHTS = ("*.safetensors", "*.bin")


def check_models(cfg: DictConfig) -> None:
    """There are the checkpoints, and prompts and answers of full length fit into their positions.

    Raises:
        ValueError: one cannot be read, or is too short.
    """
    data = cfg.data
    for who in ("teacher", "student"):
        path, positions = cfg.model[who], MAX_LENGTH
        if path is not None:
            with readable(f"model.{who}", path, "a checkpoint"):
                config = AutoConfig.from_pretrained(path).get_text_config()
            if Path(path).is_dir() and not any(any(Path(path).glob(name)) for name in WEIGHTS):
                raise ValueError(f"model.{who}={path}: the folder has a config.json, but no weights")
            positions = getattr(config, "max_position_embeddings", None) or 2**31
        if data.max_prompt_length + data.max_completion_length > positions:
            raise ValueError(
                f"data.max_prompt_length={data.max_prompt_length} and "
                f"data.max_completion_length={data.max_completion_length} do not fit together into the "
                f"{positions} positions of the {who} (model.{who}={path or 'null'}): lower one of them"
            )


def check_vocabularies(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """All models number the same tokens alike: each method, or its evaluation, compares their distributions.

    Args:
        tokenizer: the one that the run uses.

    Raises:
        ValueError: they do not.
    """
    theirs = "the instructions" if cfg.data.name == "instructions" else f"model.student={cfg.model.student}"
    sizes = {}
    for who in ("student", "teacher"):
        path = cfg.model[who]
        size = sizes[who] = (
            len(tokenizer) if path is None else AutoConfig.from_pretrained(path).get_text_config().vocab_size
        )
        if size < len(tokenizer):
            raise ValueError(
                f"model.{who}={path}: its vocabulary of {size} is smaller than the {len(tokenizer)} tokens "
                f"of {theirs}. Choose a model of the same tokenizer."
            )
        if path is None:
            continue
        try:
            own = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError, ImportError) as error:
            warnings.warn(
                f"model.{who}={path}: its tokenizer cannot be read, so it is not compared with that of "
                f"{theirs} ({first_line(error)}).",
                stacklevel=2,
            )
            continue
        # transformers makes an empty one of the model's kind where there are weights only
        made_up = len(own.get_vocab()) <= len(own.all_special_ids)
        if not made_up and (different := different_tokens(tokenizer, own)):
            raise ValueError(
                f"model.{who}={path}: its tokenizer differs from that of {theirs} in {len(different)} of "
                f"{len(tokenizer)} tokens, first in {different[0]!r}. Choose a model of the same tokenizer."
            )
    padded = cfg.method.name in ("sft", "seqkd") or cfg.method.args.get("allow_padded_vocabulary", False)
    if sizes["student"] != sizes["teacher"] and not padded:
        clear = "; +method.args.allow_padded_vocabulary=true cuts it" if cfg.method.name == "minillm" else ""
        raise ValueError(
            f"method={cfg.method.name}: model.student has a vocabulary of {sizes['student']}, model.teacher "
            f"one of {sizes['teacher']}, padded at the end. They must be equal{clear}"
        )
