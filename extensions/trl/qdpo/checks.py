"""What would go wrong later is said before work is lost."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, IterableDataset
from transformers.trainer_utils import IntervalStrategy

from .. import _host
from .layers import check_in_full_precision, quantized_layers
from .lora import check_config
from .qdpo_config import QDPOConfig
from .quantizer_file import check_not_latent

#: the columns of pairs as tokens
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def check_model(model: Any, args: QDPOConfig, teacher: Any, peft_config: Any) -> None:
    """
    What is to be quantized is in full precision; what is quantized already comes with a teacher.

    Raises:
        ValueError: it is not, or does not.
    """
    if args.bits is None:
        asked = args.asks_teacher() or "qdpo_target" in args.loss_type or args.pair_filter == "teacher"
        if teacher is None and asked:
            raise ValueError(
                f"loss_type={args.loss_type}, num_rounds={args.num_rounds} and "
                f"pair_filter={args.pair_filter!r} ask a teacher, and with bits=None the model is none to "
                "itself: set bits, or pass teacher_model."
            )
        return
    if _host.is_peft_model(model):
        raise ValueError(
            "A PeftModel cannot be quantized below its adapters. Merge it first "
            "(model.merge_and_unload()), or pass the base model and the adapter's configuration as "
            "peft_config: it is then folded into the weights before these are quantized."
        )
    check_not_latent(getattr(model, "name_or_path", None))
    layers = quantized_layers(model)
    if not layers:
        check_in_full_precision(model)
    elif teacher is None:
        raise ValueError(
            "The model is made of quantized layers already: its latent weights are not the full-precision "
            "model any more. Pass that as teacher_model."
        )
    for name, layer in layers.items():
        for setting in ("bits", "group_size", "symmetric"):
            its, asked = getattr(layer.scheme, setting), getattr(args, setting)
            if its != asked:
                raise ValueError(
                    f"The model is made of quantized layers already, and {name} has {setting}={its!r}: set "
                    f"{setting}={its!r} instead of {asked!r}."
                )
    if peft_config is not None:
        check_config(peft_config)
        if peft_config.init_lora_weights is False:
            raise ValueError(
                "init_lora_weights=False begins with a random adapter, which is neither the full-precision "
                "model nor that in few bits: set it to True, or 'gaussian'."
            )
    if args.train_scales_only and peft_config is not None:
        raise ValueError("train_scales_only trains no adapter: set it to False, or peft_config=None.")


def check_datasets(
    train_dataset: Any, eval_dataset: Any, args: QDPOConfig, processing_class: Any, alone: bool
) -> None:
    """
    There is something to train on and to evaluate, which is text where pairs are made or scored here.

    Args:
        alone: whether there is no other model than the policy, which is TRL's DPO.

    Raises:
        ValueError: there is not.
    """
    if isinstance(eval_dataset, dict) and "train" in eval_dataset and not alone:
        raise ValueError("'train' is the name of the training set: name the evaluation set otherwise.")
    if isinstance(eval_dataset, dict) and args.early_stopping_patience is not None:
        raise ValueError(
            "early_stopping_patience watches eval_flip_rate of one set: pass one eval_dataset, not a "
            "dictionary of them."
        )
    if not isinstance(train_dataset, Dataset | IterableDataset):
        return  # the host says so
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    datasets = {k: v for k, v in {"train": train_dataset, **evaluated}.items() if v is not None}
    firsts: dict[str, Any] = {name: next(iter(dataset), None) for name, dataset in datasets.items()}
    for name, first in firsts.items():
        if first is None:
            raise ValueError(f"The {name} dataset is empty.")
    if has_pictures(firsts["train"]) and not alone:
        raise ValueError(
            "The train dataset has pictures. A quantizer or a teacher_model is for text: set bits=None and "
            "teacher_model=None, which is TRL's DPOTrainer."
        )
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ValueError(
            f"eval_strategy={IntervalStrategy(args.eval_strategy).value!r} needs an eval_dataset: pass one, "
            "or set 'no'."
        )
    for name, dataset in datasets.items():
        if not has_pictures(firsts[name]):
            check_dataset(dataset, processing_class, name, alone)


def has_pictures(example: dict[str, Any]) -> bool:
    """Whether an example is for a vision-language model, as the host tells."""
    return "image" in example or "images" in example


def check_rounds(args: QDPOConfig, ready: bool) -> None:
    """
    Pairs can be made anew.

    Raises:
        ValueError: there are several rounds, and no prompts but ready pairs.
    """
    if ready and args.num_rounds > 1:
        raise ValueError(
            "With num_rounds > 1 the pairs are made of prompts, anew each round: pass a train_dataset with "
            "the column 'prompt' alone, or set num_rounds=1."
        )


def check_dataset(dataset: Any, processing_class: Any, name: str, alone: bool) -> None:
    """
    A dataset has pairs; or prompts, a template for conversations, and two models to answer.

    Raises:
        ValueError: it has not, or cannot be gone through more than once.
    """
    columns = set(dataset.column_names or next(iter(dataset), {}))
    if set(IDS) <= columns or {"chosen", "rejected"} <= columns:
        return
    if columns & {*IDS, "chosen", "rejected"}:
        raise ValueError(
            f"The {name} dataset has the columns {', '.join(sorted(columns))}. Pairs need both replies: "
            "'chosen' and 'rejected', or 'prompt_ids', 'chosen_ids' and 'rejected_ids'. Of prompts alone, "
            "in 'prompt', pairs are made here."
        )
    if alone:
        raise ValueError(
            "With bits=None and no teacher_model, both replies to a prompt would be the same model's, and "
            "no pair would teach anything. Set bits, pass teacher_model, or pass ready pairs."
        )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The {name} dataset has prompts only, and pairs are made of them before training: it must be "
            f"a Dataset, not a {type(dataset).__name__}. Use "
            "datasets.Dataset.from_list(list(stream.take(n)))."
        )
    if "prompt" not in dataset.column_names:
        raise ValueError(
            f"The {name} dataset has the columns {', '.join(dataset.column_names)}. QDPO needs 'prompt', "
            "strings or conversations; or pairs: 'prompt', 'chosen' and 'rejected'."
        )
    if not len(dataset):
        raise ValueError(f"The {name} dataset is empty.")
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if isinstance(dataset[0]["prompt"], list) and not tokenizer.chat_template:
        raise ValueError(
            "The prompts are conversations, and the tokenizer has no chat template. Take an "
            "instruction-tuned model's, set tokenizer.chat_template, or pass prompts as strings."
        )


def check_vocabulary(policy: Any, teacher: Any) -> None:
    """
    Policy and teacher speak of the same tokens.

    Raises:
        ValueError: they do not.
    """
    ours, theirs = (model.config.get_text_config().vocab_size for model in (policy, teacher))
    if ours != theirs:
        raise ValueError(
            f"The model has {ours} tokens and teacher_model {theirs}. QDPO compares their probabilities: "
            "the teacher must be the same model in full precision."
        )
