"""Configuration of :class:`~extensions.trl.QDPOTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import DPOConfig

from .quantizers import WeightScheme

#: the losses of TRL's DPOTrainer that compare the two replies of a pair
TRL_PAIR_LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
    *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm"),
)
#: ours, and those that read one reply of a pair
PAIR_LOSSES = (*TRL_PAIR_LOSSES, "qdpo_target")
REPLY_LOSSES = ("sft", "kd", "kd_on_policy")


@dataclass
class QDPOConfig(DPOConfig):
    r"""
    Configuration class for the [`QDPOTrainer`].

    Extends TRL's [`~trl.DPOConfig`], whose parameters keep their meaning and defaults, with those of QDPO
    (Lee et al. 2024, arXiv 2407.03051). The paper's hyper-parameters are not reproduced: those of its
    training were not to be found.

    Parameters:
        loss_type (`str` or `list[str]`, *optional*, defaults to `"sigmoid"`):
            One loss or several with `loss_weights`. Beside those of [`~trl.DPOConfig`] (`"sigmoid"` is the
            paper's):

            - `"qdpo_target"`: the policy's log-ratio of the two replies is led to the teacher's, instead of
              ever further apart; see `target_loss`.
            - `"kd"`: forward KL to the teacher on its own replies, per token.
            - `"kd_on_policy"`: forward KL to the teacher on the policy's replies, per token.

            With none that compares two replies, only the replies that are needed are read: `"sft"` and `"kd"`
            are then the usual baselines, at half of the cost a batch, and identical pairs are kept.

        > Parameters that control the quantizer

        bits (`int`, *optional*, defaults to `4`):
            Bits of a weight, 2 to 8. `None` leaves the model as it is.
        group_size (`int`, *optional*):
            Inputs that share a scale. `None` for one scale per output channel.
        symmetric (`bool`, *optional*, defaults to `True`):
            Whether zero is the middle of the grid; else scales come with zero points.
        clip (`str`, *optional*, defaults to `"absmax"`):
            `"absmax"` (round to nearest) or `"mse"` (the clip that makes the squared error smallest).
        scale_dtype (`str`, *optional*, defaults to `"bfloat16"`):
            Type on whose grid scales live, in training as in the packed file.
        quantize_lm_head (`bool`, *optional*, defaults to `False`):
            Whether the output head is quantized too. Its weight must not be tied to the embedding.
        modules_to_not_quantize (`list[str]`, *optional*):
            Names, or parts of names, of modules that stay in full precision.
        activation_bits (`int`, *optional*):
            Bits of the inputs of quantized layers, with a scale per token.
        kv_bits (`int`, *optional*):
            Bits of keys and values in attention, with a scale per token and head.
        train_scales_only (`bool`, *optional*, defaults to `False`):
            Train the scales (Esser et al. 2020, arXiv 1902.08153) and nothing else.

        > Parameters that control the pairs

        max_new_tokens (`int`, *optional*, defaults to `256`):
            Tokens after which a reply is cut that has not ended.
        generation_batch_size (`int`, *optional*, defaults to `16`):
            Replies generated together.
        pairs_dir (`str`, *optional*):
            Where replies are kept while they are made and for later runs. By default `output_dir/pairs`;
            `""` keeps none.
        divergence_window (`int`, *optional*):
            Tokens, from the first one in which the two replies differ, that the losses on pairs count.
            `None` for all.
        pair_filter (`str`, *optional*, defaults to `"none"`):
            `"teacher"` leaves out pairs of which the teacher finds the rejected reply as a whole the
            likelier one: greedy replies are not the likeliest ones, so that the label of a pair may be wrong.
        anchor_fraction (`float`, *optional*, defaults to `0.0`):
            Share of the prompts with identical replies that still give a pair, in [0, 1]: the rejected reply
            takes the policy's second choice where its first was the least certain, and goes on from there.
            They hold in place what is right already.
        shuffle_labels (`bool`, *optional*, defaults to `False`):
            Swap the replies of a random half of the pairs: a control, which tells what training does by
            itself.
        target_loss (`str`, *optional*, defaults to `"mse"`):
            How `"qdpo_target"` compares the log-ratio g of the policy with t, the teacher's: `"mse"`, (g -
            t)^2, or `"bce"`, the cross-entropy of sigmoid(g) to the teacher's Bradley-Terry probability
            sigmoid(t).

        > Parameters that control the rounds

        num_rounds (`int`, *optional*, defaults to `1`):
            Times pairs are made, each time with replies of the policy as it is then. The reference stays the
            initial quantized model.
        epochs_per_round (`int`, *optional*, defaults to `1`):
            Epochs over the pairs of a round.
        early_stopping_patience (`int`, *optional*):
            Evaluations without a lower `eval_flip_rate` after which training stops. Needs an `eval_dataset`
            of prompts and an `eval_strategy`.

    Raises:
        ValueError: a value out of range, or values that do not go together.
    """

    bits: int | None = field(default=4, metadata={"help": "Bits of a weight, 2 to 8; None for no quantizer."})
    group_size: int | None = field(
        default=None, metadata={"help": "Inputs that share a scale; None for one scale per output channel."}
    )
    symmetric: bool = field(default=True, metadata={"help": "Whether zero is the middle of the grid."})
    clip: str = field(
        default="absmax", metadata={"help": "'absmax' (round to nearest) or 'mse' (smallest squared error)."}
    )
    scale_dtype: str = field(default="bfloat16", metadata={"help": "Type on whose grid scales live."})
    quantize_lm_head: bool = field(
        default=False, metadata={"help": "Whether the output head is quantized too."}
    )
    modules_to_not_quantize: list[str] | None = field(
        default=None, metadata={"help": "Names, or parts of names, of modules that stay in full precision."}
    )
    activation_bits: int | None = field(
        default=None, metadata={"help": "Bits of the inputs of quantized layers, with a scale per token."}
    )
    kv_bits: int | None = field(
        default=None, metadata={"help": "Bits of keys and values, with a scale per token and head."}
    )
    train_scales_only: bool = field(default=False, metadata={"help": "Train the scales and nothing else."})
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens after which a reply is cut."})
    generation_batch_size: int = field(default=16, metadata={"help": "Replies generated together."})
    pairs_dir: str | None = field(default=None, metadata={"help": "Where replies are kept; '' for nowhere."})
    divergence_window: int | None = field(
        default=None, metadata={"help": "Tokens from the first difference on that pair losses count."}
    )
    pair_filter: str = field(
        default="none", metadata={"help": "'teacher' leaves out pairs that the teacher orders otherwise."}
    )
    anchor_fraction: float = field(
        default=0.0, metadata={"help": "Share of the prompts with identical replies that still give a pair."}
    )
    shuffle_labels: bool = field(
        default=False, metadata={"help": "Swap the replies of a random half of the pairs, as a control."}
    )
    target_loss: str = field(default="mse", metadata={"help": "'mse' or 'bce', for loss_type='qdpo_target'."})
    num_rounds: int = field(
        default=1, metadata={"help": "Times pairs are made, each by the policy as it is."}
    )
    epochs_per_round: int = field(default=1, metadata={"help": "Epochs over the pairs of a round."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a lower eval_flip_rate before training stops."}
    )

    def __post_init__(self) -> None:
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1 or self.eval_strategy == "no":
                raise ValueError(
                    "early_stopping_patience counts evaluations without a lower flip rate: it must be at "
                    "least 1, and eval_strategy 'steps' or 'epoch'."
                )
            self.metric_for_best_model = self.metric_for_best_model or "eval_flip_rate"
            if self.metric_for_best_model.endswith("flip_rate") and self.greater_is_better is None:
                self.greater_is_better = False
            self.restore_callback_states_from_checkpoint = True  # the patience that is left
        super().__post_init__()
        self._check_losses()
        self._check_quantizer()
        self._check_pairs()

    def _check_losses(self) -> None:
        args: Any = self
        for name in args.loss_type:
            if name not in (*PAIR_LOSSES, *REPLY_LOSSES):
                raise ValueError(
                    f"Unknown loss_type {name!r}. Known are {', '.join((*PAIR_LOSSES, *REPLY_LOSSES))}."
                )
            if args.loss_type.count(name) > 1:
                raise ValueError(f"loss_type names {name!r} twice: name it once, and add up loss_weights.")
        if self.target_loss not in ("mse", "bce"):
            raise ValueError(f"target_loss must be 'mse' or 'bce', not {self.target_loss!r}.")
        if self.sync_ref_model and not args.compares_with_reference():
            raise ValueError(
                f"sync_ref_model=True, and no loss of loss_type={args.loss_type} reads a reference: set it "
                "to False."
            )
        if "qdpo_target" in args.loss_type and self.ld_alpha is not None:
            raise ValueError("loss_type 'qdpo_target' does not go with ld_alpha: set ld_alpha=None.")

    def _check_quantizer(self) -> None:
        self.scheme()
        for name in ("activation_bits", "kv_bits"):
            value = getattr(self, name)
            if value is not None and self.bits is None:
                raise ValueError(f"{name} needs a quantizer: set bits, or {name}=None.")
            if value is not None and not 2 <= value <= 8:
                raise ValueError(f"{name} must be an integer from 2 to 8, or None, not {value!r}.")
        if self.train_scales_only and self.bits is None:
            raise ValueError("train_scales_only needs a quantizer: set bits.")

    def _check_pairs(self) -> None:
        for name in ("max_new_tokens", "generation_batch_size", "num_rounds", "epochs_per_round"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.divergence_window is not None and self.divergence_window < 1:
            raise ValueError(f"divergence_window must be at least 1, or None, not {self.divergence_window}.")
        if self.pair_filter not in ("none", "teacher"):
            raise ValueError(f"pair_filter must be 'none' or 'teacher', not {self.pair_filter!r}.")
        if not 0.0 <= self.anchor_fraction <= 1.0:
            raise ValueError(f"anchor_fraction must be in [0, 1], not {self.anchor_fraction}.")
        if self.num_rounds > 1:
            self._check_rounds()

    def _check_rounds(self) -> None:
        epochs = self.num_rounds * self.epochs_per_round
        if self.max_steps <= 0 and self.num_train_epochs < epochs:
            raise ValueError(
                f"{self.num_rounds} rounds of {self.epochs_per_round} epochs are {epochs} epochs, and "
                f"num_train_epochs is {self.num_train_epochs:g}: the last rounds would never begin. Set "
                f"num_train_epochs={epochs}."
            )
        if self.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers=True would go on with the first round's pairs: with "
                "num_rounds > 1 set it to False."
            )

    def scheme(self) -> WeightScheme | None:
        """How weights are rounded; None for not at all."""
        if self.bits is None:
            return None
        return WeightScheme(self.bits, self.group_size, self.symmetric, self.clip, self.scale_dtype)

    def compares_pairs(self) -> bool:
        """Whether a loss compares the two replies of a pair."""
        return any(name in PAIR_LOSSES for name in self.loss_type)

    def compares_with_reference(self) -> bool:
        """Whether a loss compares the policy with its reference."""
        return any(name in TRL_PAIR_LOSSES for name in self.loss_type)

    def reads_replies(self) -> bool:
        """Whether a loss reads single replies."""
        return any(name in REPLY_LOSSES for name in self.loss_type)

    def asks_teacher(self) -> bool:
        """Whether the teacher is asked again once training has begun."""
        return self.num_rounds > 1 or "kd" in self.loss_type or "kd_on_policy" in self.loss_type
