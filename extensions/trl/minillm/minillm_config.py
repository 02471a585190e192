"""Configuration of :class:`~extensions.trl.MiniLLMTrainer`."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from trl import DistillationConfig

from .modes import MODES
from .objective import Objective

logger = logging.getLogger(__name__)

FROM_MODE = "Taken from `mode` if not set."


@dataclass
class MiniLLMConfig(DistillationConfig):
    r"""
    Configuration class for the [`MiniLLMTrainer`].

    Extends TRL's [`~trl.DistillationConfig`], whose parameters keep their meaning, with those of MiniLLM
    (Gu et al. 2024, arXiv 2306.08543). What is left `None` is taken from `mode`; see
    `extensions/trl/minillm/modes.py`, where each value stands beside its source.

    Parameters:
        mode (`str`, *optional*, defaults to `"paper"`):
            `"paper"`: equation 7 and Algorithm 1 as printed. `"reference"`: the arithmetic of the
            paper's code. `"modern"`: the paper's estimator with a leave-one-out baseline, rewards that
            are bounded (which biases it), a clip on the student's own change, and one pass over each rollout.

        > Parameters that control the objective (see [`Objective`])

        single_step (`bool`, *optional*):
            Exact KL(q_t || p_t) over the vocabulary at each visited prefix (eq. 3, first part).
        long_term (`bool`, *optional*):
            Policy gradient on the rewards to come (eq. 3, second part). Without it, and with
            `teacher_mix_alpha=0.0`, `importance_weights="none"` and `normalization="token"`, the loss is that
            of TRL's `DistillationTrainer` at `beta=1`.
        returns (`str`, *optional*):
            `"exclusive"`, the rewards after t, or `"inclusive"`, from t on. With `single_step=False` it is
            `"inclusive"` if not set: the reward at t would be in neither part.
        gamma (`float`, *optional*):
            Discount of later rewards, in (0, 1].
        length_normalization (`bool`, *optional*):
            Divide the rewards to come by their number (eq. 6).
        importance_weights (`str`, *optional*):
            `"token"` (w_t, eq. 5), `"prefix"` (products of the ratios; unbiased) or `"none"`.
        importance_cap (`float`, *optional*, defaults to `0.0`):
            Largest weight under `"prefix"`; 0 for none.
        weight_single_step (`bool`, *optional*):
            The weights multiply the single-step part too (eq. 7).
        clip (`str`, *optional*):
            `"paper"`, `"reference"` or `"policy"`; see [`Objective`].
        epsilon (`float`, *optional*):
            Width of the clip; 0 for none.
        baseline (`str`, *optional*):
            `"none"`; `"position"`, the mean return at a token's position over all answers of a generation; or
            `"leave_one_out"`, over those others that are independent of this one. They are answers to other
            prompts, each prompt having one, and not to the same prompt as in RLOO and GRPO.
        whiten (`str`, *optional*):
            `"none"`, `"masked"` or `"padded"`.
        reward_scale (`float`, *optional*):
            Factor of the rewards.
        reward_clip (`float`, *optional*):
            Bound of a single reward; 0 for none.
        normalization (`str`, *optional*):
            What the sums over tokens are divided by, in all of an update: `"token"`, the number of tokens, or
            `"sequence"`, that of answers.

        > Parameters that control the rollouts

        teacher_mix_alpha (`float`, *optional*):
            Share of the teacher in the mixture that answers are drawn from, in [0, 1) (eq. 4).
        teacher_mix_method (`str`, *optional*):
            `"coin_flip"`: a coin per position says which model writes the token; `"mixture"`: both models are
            asked at each position, which takes longer. Answers have the same law. The coins are shared by the
            answers of a chunk, so these depend on each other; with a leave-one-out baseline each half of them
            has coins of its own, and the baseline is made from answers with other coins.
        rollout_chunk_size (`int`, *optional*, defaults to `64`):
            Answers generated at a time on each device; what bounds the key-value caches.
        steps_per_generation (`int`, *optional*):
            Batches of `per_device_train_batch_size` that one generation fills, a multiple of
            `gradient_accumulation_steps`. By default enough for four updates (`"paper"`, `"reference"`)
            or one.
        num_iterations (`int`, *optional*):
            Times each rollout is learned from (the paper's inner epochs).
        cache_teacher_hidden (`bool`, *optional*, defaults to `True`):
            Keep the teacher's last hidden states with the rollout (rollouts x tokens x its width) instead of
            running the teacher again at every update. They are those it made while answers were drawn with
            it, unless autocast gave it another type there than its own.

        > Parameters that control the teacher

        allow_padded_vocabulary (`bool`, *optional*, defaults to `False`):
            Accept models whose vocabularies differ in unused tokens at the end (as sizes of one family may);
            tokens beyond the smaller one are never drawn and count for nothing.

        > Parameters that control the language-modelling loss on plain text, L_PT

        pretraining_coef (`float`, *optional*):
            Weight of L_PT. Only used with a `pretraining_dataset`.
        pretraining_kd_ratio (`float`, *optional*):
            Share of the forward KL to the teacher in L_PT, in [0, 1].
        pretraining_batch_size (`int`, *optional*):
            Texts a device sees with each batch; `per_device_train_batch_size` if not set.
        pretraining_max_length (`int`, *optional*, defaults to `512`):
            Tokens after which a text is cut.

        > Parameters that control the warm start

        warm_start_epochs (`float`, *optional*, defaults to `0.0`):
            Epochs of supervised fine-tuning on the dataset's `"completion"` column before the first rollout
            (the paper trains 3 and keeps the checkpoint of the lowest validation loss).
        warm_start_learning_rate (`float`, *optional*):
            Its learning rate; `learning_rate` if not set.

        > Parameters whose default differs from TRL's

        learning_rate (`float`, *optional*, defaults to `5e-6`):
            As in the paper.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            The weights compare the student that drew an answer with the one that learns from it; dropout
            would make them two different ones.
    """

    learning_rate: float = field(default=5e-6, metadata={"help": "The initial learning rate for AdamW."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "Whether to disable dropout in the student model during training."}
    )

    mode: str = field(
        default="paper",
        metadata={
            "help": "Set of hyper-parameters: 'paper' (eq. 7), 'reference' (the paper's code) or 'modern'."
        },
    )

    # Parameters that control the objective
    single_step: bool | None = field(
        default=None, metadata={"help": f"Exact KL at each visited prefix (eq. 3). {FROM_MODE}"}
    )
    long_term: bool | None = field(
        default=None, metadata={"help": f"Policy gradient on the rewards to come (eq. 3). {FROM_MODE}"}
    )
    returns: str | None = field(
        default=None,
        metadata={"help": f"'exclusive' (rewards after t) or 'inclusive' (from t on). {FROM_MODE}"},
    )
    gamma: float | None = field(default=None, metadata={"help": f"Discount of later rewards. {FROM_MODE}"})
    length_normalization: bool | None = field(
        default=None, metadata={"help": f"Divide the rewards to come by their number (eq. 6). {FROM_MODE}"}
    )
    importance_weights: str | None = field(
        default=None, metadata={"help": f"'token' (eq. 5), 'prefix' (unbiased) or 'none'. {FROM_MODE}"}
    )
    importance_cap: float = field(
        default=0.0, metadata={"help": "Largest weight under importance_weights='prefix'; 0 for none."}
    )
    weight_single_step: bool | None = field(
        default=None, metadata={"help": f"The weights multiply the single-step part too (eq. 7). {FROM_MODE}"}
    )
    clip: str | None = field(
        default=None, metadata={"help": f"'paper', 'reference' or 'policy'. {FROM_MODE}"}
    )
    epsilon: float | None = field(
        default=None, metadata={"help": f"Width of the clip; 0 for none. {FROM_MODE}"}
    )
    baseline: str | None = field(
        default=None, metadata={"help": f"'none', 'position' or 'leave_one_out'. {FROM_MODE}"}
    )
    whiten: str | None = field(default=None, metadata={"help": f"'none', 'masked' or 'padded'. {FROM_MODE}"})
    reward_scale: float | None = field(default=None, metadata={"help": f"Factor of the rewards. {FROM_MODE}"})
    reward_clip: float | None = field(
        default=None, metadata={"help": f"Bound of a single reward; 0 for none. {FROM_MODE}"}
    )
    normalization: str | None = field(
        default=None,
        metadata={"help": f"Sums are divided by the number of 'token's or 'sequence's. {FROM_MODE}"},
    )

    # Parameters that control the rollouts
    teacher_mix_alpha: float | None = field(
        default=None, metadata={"help": f"Share of the teacher in the sampling mixture (eq. 4). {FROM_MODE}"}
    )
    teacher_mix_method: str | None = field(
        default=None, metadata={"help": f"'coin_flip' or 'mixture'. {FROM_MODE}"}
    )
    rollout_chunk_size: int = field(
        default=64, metadata={"help": "Answers generated at a time on each device."}
    )
    steps_per_generation: int | None = field(
        default=None,
        metadata={
            "help": "Batches that one generation fills, a multiple of gradient_accumulation_steps. By "
            "default enough for four updates (mode 'paper' and 'reference') or one ('modern')."
        },
    )
    num_iterations: int | None = field(
        default=None, metadata={"help": f"Times each rollout is learned from. {FROM_MODE}"}
    )
    cache_teacher_hidden: bool = field(
        default=True, metadata={"help": "Keep the teacher's last hidden states with the rollout."}
    )

    # Parameters that control the teacher
    allow_padded_vocabulary: bool = field(
        default=False, metadata={"help": "Accept vocabularies that differ in unused tokens at the end."}
    )

    # Parameters that control the language-modelling loss on plain text
    pretraining_coef: float | None = field(
        default=None, metadata={"help": f"Weight of the loss on the pretraining dataset. {FROM_MODE}"}
    )
    pretraining_kd_ratio: float | None = field(
        default=None, metadata={"help": f"Share of the forward KL to the teacher in that loss. {FROM_MODE}"}
    )
    pretraining_batch_size: int | None = field(
        default=None, metadata={"help": "Texts per device and batch; per_device_train_batch_size if not set."}
    )
    pretraining_max_length: int = field(default=512, metadata={"help": "Tokens after which a text is cut."})

    # Parameters that control the warm start
    warm_start_epochs: float = field(
        default=0.0,
        metadata={"help": "Epochs of supervised fine-tuning on the 'completion' column at first."},
    )
    warm_start_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the warm start; learning_rate if not set."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}.")
        mode = MODES[self.mode]
        if self.single_step is False and self.returns is None:
            self.returns = "inclusive"  # the reward at t is in one of the two parts
        for name, value in mode.items():
            if name != "rollout_batches" and getattr(self, name) is None:
                setattr(self, name, value)
        if self.steps_per_generation is None:
            self.steps_per_generation = mode["rollout_batches"] * self.gradient_accumulation_steps
        self._check_rollouts()
        self._check_text()
        if self.beta != 1.0:
            raise ValueError(
                f"MiniLLM minimises the reverse KL, which is beta=1.0, got beta={self.beta}. Use TRL's "
                "DistillationTrainer for other divergences."
            )
        self.objective()  # raises where its parts do not make sense
        shares_coins = self.teacher_mix_alpha and self.teacher_mix_method == "coin_flip"
        if shares_coins and (self.baseline == "position" or self.whiten != "none"):
            logger.warning(
                "Answers that share coins are not independent, which biases a position baseline and "
                "whitening. Set teacher_mix_method='mixture', or baseline='leave_one_out'."
            )

    def _check_rollouts(self) -> None:
        args: Any = self  # whatever was None is set by now
        if args.num_iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {args.num_iterations}.")
        if args.steps_per_generation < 1 or args.steps_per_generation % args.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({args.steps_per_generation}) must be a multiple of "
                f"gradient_accumulation_steps ({args.gradient_accumulation_steps}): one generation serves "
                "whole updates."
            )
        if args.rollout_chunk_size < 1:
            raise ValueError(f"rollout_chunk_size must be at least 1, got {args.rollout_chunk_size}.")
        if not 0.0 <= args.teacher_mix_alpha < 1.0:
            raise ValueError(
                f"teacher_mix_alpha must be in [0, 1), got {args.teacher_mix_alpha}: at 1 the student would "
                "write nothing."
            )
        if args.teacher_mix_method not in ("coin_flip", "mixture"):
            raise ValueError(
                f"teacher_mix_method must be 'coin_flip' or 'mixture', got {args.teacher_mix_method!r}."
            )
        if args.teacher_mix_alpha > 0.0 and args.use_vllm:
            raise ValueError(
                "Teacher-mixed sampling needs both models in one generation loop, which vLLM does not offer. "
                "Set teacher_mix_alpha=0.0 to generate with vLLM, or use_vllm=False."
            )
        if args.normalization not in ("token", "sequence"):
            raise ValueError(f"normalization must be 'token' or 'sequence', got {args.normalization!r}.")

    def _check_text(self) -> None:
        args: Any = self
        if args.pretraining_coef < 0.0 or not math.isfinite(args.pretraining_coef):
            raise ValueError(f"pretraining_coef must be at least 0, got {args.pretraining_coef}.")
        if not 0.0 <= args.pretraining_kd_ratio <= 1.0:
            raise ValueError(f"pretraining_kd_ratio must be in [0, 1], got {args.pretraining_kd_ratio}.")
        if args.pretraining_batch_size is None:
            args.pretraining_batch_size = args.per_device_train_batch_size
        if args.pretraining_batch_size < 1 or args.pretraining_max_length < 2:
            raise ValueError(
                "pretraining_batch_size must be at least 1 and pretraining_max_length at least 2."
            )
        if args.warm_start_epochs < 0.0:
            raise ValueError(f"warm_start_epochs must be at least 0, got {args.warm_start_epochs}.")

        rate = args.warm_start_learning_rate
        if rate is not None and not rate > 0.0:
            raise ValueError(f"warm_start_learning_rate must be > 0, got {rate}.")

    def objective(self) -> Objective:
        """The part of the configuration that is the objective; 0 stands for "none" in its bounds."""
        renamed = {"importance": "importance_weights"}
        switches: dict[str, Any] = {
            name: getattr(self, renamed.get(name, name)) for name in Objective.names()
        }
        for name in ("epsilon", "importance_cap", "reward_clip"):
            switches[name] = switches[name] or None
        return Objective(**switches)
