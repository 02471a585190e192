"""
Three sets of MiniLLM's hyper-parameters. Any of them can be overridden one by one in the configuration.

Equations are those of Gu et al. 2024 (arXiv 2306.08543); "the paper's code" is the ``minillm`` folder of
microsoft/LMOps with the arguments of its GPT-2 scripts.
"""

from __future__ import annotations

from typing import Any

MODES: dict[str, dict[str, Any]] = {
    # Equation 7 and Algorithm 1 as they are printed.
    "paper": {
        "single_step": True,  # eq. 3, first part: the exact KL over the vocabulary
        "long_term": True,  # eq. 3, second part
        "returns": "exclusive",  # eq. 3: R_{t+1}; r_t is in the single-step part
        "gamma": 1.0,  # no discount
        "length_normalization": True,  # eq. 6
        "teacher_mix_alpha": 0.2,  # eq. 4; "alpha = 0.2" throughout
        "teacher_mix_method": "coin_flip",  # the same law for less
        "importance_weights": "token",  # eq. 5: w_t = q(y_t) / p~(y_t) instead of the product up to t
        "weight_single_step": True,  # eq. 7: w_t multiplies both parts (on this one its mean is 1: noise)
        "clip": "paper",  # Algorithm 1: min(rho, clip(rho)), rho = q / p~
        "epsilon": 0.2,  # Algorithm 1
        "baseline": "none",
        "whiten": "none",
        "reward_scale": 1.0,
        "reward_clip": 0.0,
        "normalization": "sequence",  # eq. 7 is an expectation over answers of a sum over tokens
        "rollout_batches": 4,  # 256 answers, learned from in batches of 64 ...
        "num_iterations": 4,  # ... four times over
        "pretraining_coef": 1.0,  # Algorithm 1: the gradient of L_PT is added as it is
        "pretraining_kd_ratio": 0.0,  # L_PT = -log q(d)
    },
    # What the paper's code does, for the sake of its numbers.
    "reference": {
        "single_step": True,
        "long_term": True,
        "returns": "inclusive",  # R_t on top of the single-step part: r_t enters twice
        "gamma": 0.95,
        "length_normalization": True,  # divided by the number of tokens left, t included
        "teacher_mix_alpha": 0.2,
        "teacher_mix_method": "mixture",  # as there; whitening would see that answers share coins
        "importance_weights": "token",
        "weight_single_step": False,
        "clip": "reference",  # w_t inside PPO's ratio: min(rho A, clip(rho) A), rho = q / p~
        "epsilon": 0.2,
        "baseline": "none",
        "whiten": "padded",  # padding included, as there; there each mini-batch by itself, here a generation
        "reward_scale": 2.0,  # "reward-scaling 0.5", by which it divides
        "reward_clip": 100.0,
        "normalization": "token",
        "rollout_batches": 4,
        "num_iterations": 4,
        "pretraining_coef": 1.0,
        "pretraining_kd_ratio": 0.5,  # half likelihood, half forward KL to the teacher on the same text
    },
    # Equation 7 with less variance, on-policy throughout; the bound of the rewards is the price, a bias.
    "modern": {
        "single_step": True,
        "long_term": True,
        "returns": "exclusive",
        "gamma": 1.0,
        "length_normalization": True,
        "teacher_mix_alpha": 0.2,
        "teacher_mix_method": "coin_flip",  # the baseline leaves out all that share an answer's coins
        "importance_weights": "token",
        "weight_single_step": True,
        "clip": "policy",  # clips what the student has changed, not what the teacher mixed in
        "epsilon": 0.2,
        "baseline": "leave_one_out",  # leaves the expected gradient as it is
        "whiten": "none",
        "reward_scale": 1.0,
        "reward_clip": 5.0,  # a token that the teacher would hardly say costs no more than this
        "normalization": "token",  # as TRL's other trainers
        "rollout_batches": 1,
        "num_iterations": 1,
        "pretraining_coef": 1.0,
        "pretraining_kd_ratio": 0.0,
    },
}
