"""Loading the teacher, and whether it speaks the student's language."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .._host import create_model_from_path

if TYPE_CHECKING:
    from .minillm_config import MiniLLMConfig

logger = logging.getLogger(__name__)


def load_teacher(teacher: str | PreTrainedModel | None, args: MiniLLMConfig) -> PreTrainedModel:
    """
    The teacher as it was given; loaded from a name or path if it is one.

    Raises:
        ValueError: there is none, or loading arguments came with a teacher that is loaded already.
    """
    teacher = args.teacher_model_name_or_path if teacher is None else teacher
    if teacher is None:
        raise ValueError(
            "MiniLLM needs a teacher: pass `teacher_model`, a model or the name or path of one, or set "
            "`teacher_model_name_or_path` in the configuration."
        )
    if isinstance(teacher, str):
        given: Any = args.teacher_model_init_kwargs or {}
        arguments = {**given, "revision": _revision(args)}
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            arguments["device_map"] = None  # every process holds (its part of) the whole model
        arguments.setdefault("trust_remote_code", args.trust_remote_code)
        return create_model_from_path(teacher, **arguments)
    if args.teacher_model_init_kwargs is not None:
        raise ValueError(
            "`teacher_model_init_kwargs` are for a teacher given by name, but `teacher_model` is loaded "
            "already. Remove them, or pass its name."
        )
    return teacher


def warn_if_the_same(student: Any, teacher: Any, args: MiniLLMConfig) -> None:
    """A student that begins as its teacher has nothing to learn from it."""
    teacher = args.teacher_model_name_or_path if teacher is None else teacher
    given: Any = args.model_init_kwargs or {}
    if isinstance(student, str) and (student, given.get("revision") or "main") == (teacher, _revision(args)):
        logger.warning(
            f"Student and teacher are both {student}: where they are equal, there is nothing to learn. Pass "
            "another model as `teacher_model`."
        )


def _revision(args: MiniLLMConfig) -> str:
    """Of a teacher given by name; its loading arguments may have one of their own."""
    given: Any = args.teacher_model_init_kwargs or {}
    return given.get("revision") or args.teacher_model_revision or "main"


def check_not_the_student(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """A teacher that shares parameters with the student would move with it, or freeze it."""
    ours = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in ours for parameter in teacher.parameters()):
        raise ValueError(
            "The teacher shares parameters with the student, and would change as the student learns. Load it "
            "a second time, or pass copy.deepcopy(model)."
        )


def common_vocabulary(q: int, p: int, tokens: int, padded: bool) -> int:
    """
    Number of tokens both models speak of.

    Args:
        q, p: sizes of the student's and the teacher's vocabulary.
        tokens: of the student's tokenizer, all of which both must know.
        padded: whether unused tokens at the end may differ in number.
    """
    if q != p and not padded:
        raise ValueError(
            f"The student model has vocab_size {q} but the teacher model has vocab_size {p}. The KL "
            "divergence compares their next-token distributions, which needs one vocabulary. If both share "
            "the tokenizer and differ in padding at the end only, set allow_padded_vocabulary=True; for "
            "different tokenizers use TRL's GOLD trainer."
        )
    if min(q, p) < tokens:
        raise ValueError(
            f"The tokenizer has {tokens} tokens, more than the smaller model ({min(q, p)}): they do not "
            "share it. If a padding token was added to it, pad with another (tokenizer.pad_token = "
            "tokenizer.eos_token), or give both models a row for it (model.resize_token_embeddings); for "
            "different tokenizers use TRL's GOLD trainer."
        )
    return min(q, p)


def teacher_tokenizer(
    teacher: str | PreTrainedModel | None, args: MiniLLMConfig
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside the teacher's weights, if these were loaded and it can be."""
    name = args.teacher_model_name_or_path if teacher is None else teacher
    if not isinstance(name, str):
        name = getattr(teacher, "name_or_path", "")
    if not name:
        return None  # a model made in memory: nothing to compare with
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=_revision(args), trust_remote_code=args.trust_remote_code
        )
        # transformers makes an empty one of the model's kind where there are weights only
        if len(tokenizer.get_vocab()) > len(tokenizer.all_special_ids):
            return tokenizer
        why = "there is none"
    except (OSError, ValueError, KeyError, ImportError) as error:
        why = type(error).__name__
    logger.warning(
        f"The teacher's tokenizer could not be loaded from {name} ({why}), so it is not compared with the "
        "student's. Pass `teacher_processing_class` to have it checked."
    )
    return None


def check_same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """
    Two models of equal size may still number their tokens differently: compare them one by one.

    Raises:
        ValueError: they differ.
    """
    different = different_tokens(student, teacher)
    if different:
        ours, theirs, token = student.get_vocab(), teacher.get_vocab(), different[0]
        raise ValueError(
            f"The teacher's tokenizer differs from the student's in {len(different)} of {len(ours)} tokens, "
            f"first in {token!r}, which is {ours[token]} for the student and {theirs.get(token)} for the "
            "teacher. MiniLLM compares distributions over one vocabulary; for different tokenizers use TRL's "
            "GOLD trainer. If the teacher was trained with the student's numbers all the same, pass the "
            "student's tokenizer as `teacher_processing_class`."
        )


def different_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> list[str]:
    """
    The student's tokens that the teacher has not, or under another number; in the student's order.

    Only a padding token may be the student's alone, under a number that is free in the teacher's: it stands
    where nothing is learned.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    different = [token for token, i in ours.items() if theirs.get(token) != i]
    pad = student.pad_token
    if pad in different and pad not in theirs and ours[pad] not in theirs.values():
        different.remove(pad)
    return sorted(different, key=ours.__getitem__)
