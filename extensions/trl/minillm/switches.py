"""Which parts MiniLLM's objective has."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

CHOICES = {
    "returns": ("exclusive", "inclusive"),
    "importance": ("token", "prefix", "none"),
    "clip": ("paper", "reference", "policy"),
    "baseline": ("none", "position", "leave_one_out"),
    "whiten": ("none", "masked", "padded"),
}


@dataclass(frozen=True)
class Objective:
    """
    Which terms, weights and variance tools the gradient has. The defaults are the paper's equation 7.

    Args:
        single_step: the exact KL(q_t || p_t) over the vocabulary at each visited prefix (eq. 3, first part).
        long_term: the policy gradient on the rewards to come (eq. 3, second part).
        returns: ``"exclusive"``, R_{t+1}, the rewards after t (eq. 3); ``"inclusive"``, R_t, the rewards
            from t on (eq. 2). Inclusive returns with ``single_step`` count the reward at t twice.
        gamma: discount of later rewards, in (0, 1]. The paper has none.
        length_normalization: divide the returns by the number of tokens to come (eq. 6). The paper divides
            the T - t rewards after t by T - t - 1; that is 0 at the last reward, so it is clamped to 1.
            Inclusive returns are divided by their number of terms.
        importance: how answers drawn from the mixture p~ are weighted back to the student. ``"token"``: by
            w_t = q(y_t) / p~(y_t), the paper's biased, low-variance choice; ``"prefix"``: each reward by the
            product of the ratios up to it, which is unbiased; ``"none"``: not at all.
        importance_cap: the largest weight under ``"prefix"``; ``None`` leaves them as they are (unbiased).
        weight_single_step: the weights multiply the single-step part as well (eq. 7).
        clip: where the policy gradient stops moving a token, given ``epsilon``, rho = q / p~ and A the
            advantage. ``"paper"``: min(rho, clip(rho)) A, as Algorithm 1 prints it; ``"reference"``: PPO's
            min(rho A, clip(rho) A); ``"policy"``: w_t min(r A, clip(r) A) with r = q / q_old, which clips
            what the student has changed since the answers were drawn and not what the mixture has.
        epsilon: width of the clip, > 0; ``None`` for no clip.
        baseline: what is subtracted from the returns: ``"position"``, their mean over the answers at the same
            position; ``"leave_one_out"``, that mean over the other answers that are independent of this one,
            which leaves the gradient unbiased.
        whiten: ``"masked"``: advantages to mean 0 and variance 1 over the tokens that count; ``"padded"``:
            over padding too, as the paper's code does.
        reward_scale: factor of the rewards.
        reward_clip: rewards are cut to ``[-reward_clip, reward_clip]`` after scaling; ``None`` for no cut.
    """

    single_step: bool = True
    long_term: bool = True
    returns: str = "exclusive"
    gamma: float = 1.0
    length_normalization: bool = True
    importance: str = "token"
    importance_cap: float | None = None
    weight_single_step: bool = True
    clip: str = "paper"
    epsilon: float | None = 0.2
    baseline: str = "none"
    whiten: str = "none"
    reward_scale: float = 1.0
    reward_clip: float | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if not (self.single_step or self.long_term):
            raise ValueError("Nothing is left to learn from: set single_step=True or long_term=True.")
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma must be in (0, 1], got {self.gamma}.")
        for name in ("epsilon", "importance_cap", "reward_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(f"{name} must be > 0, or None to do without, got {value}.")
        if not (math.isfinite(self.reward_scale) and self.reward_scale > 0.0):
            raise ValueError(f"reward_scale must be > 0, got {self.reward_scale}.")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the switches, as a configuration repeats them."""
        return tuple(field.name for field in fields(cls))

    @property
    def needs_scores(self) -> bool:
        """Whether the answers' log-probabilities at the time they were drawn enter the gradient."""
        return self.long_term or (self.importance != "none" and self.weight_single_step)
