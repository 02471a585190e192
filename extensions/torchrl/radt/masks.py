"""Who may look at whom."""

from __future__ import annotations

import torch
from torch import Tensor


def step_mask(steps: int, mask: Tensor | None, window: int | None, device: torch.device) -> Tensor:
    """Which steps a step may see: those up to itself, real, and within the window.

    A step that is padding sees itself, so that no row is empty; nothing real sees it.

    Args:
        steps: T.
        mask: (B, T), True where a step is real; None if all are.
        window: each sees so many steps, itself included; None for all.

    Returns:
        (B, T, T), or (1, T, T) without ``mask``; [b, i, j] is True where step i may look at step j.
    """
    ones = torch.ones(1, steps, steps, dtype=torch.bool, device=device)
    seen = ones.tril()
    if window is not None:
        seen = seen.triu(1 - window)
    if mask is not None:
        seen = seen & mask[:, None] | torch.eye(steps, dtype=torch.bool, device=device)
    return seen


def causal_mask(tokens: int, device: torch.device) -> Tensor:
    """(1, 1, N, N), True where token i may look at token j: j <= i."""
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=device).tril()


def token_masks(
    steps: int, mask: Tensor | None, window: int | None, device: torch.device
) -> tuple[Tensor | None, Tensor]:
    """Masks for the tokens s_0, a_0, s_1, a_1, ..: of self-attention, (B, 1, 2 T, 2 T), None if it is just
    causal; and of the returns, (B, 1, 2 T, T): both tokens of a step see the returns up to that step."""
    seen = step_mask(steps, mask, window, device)
    of_returns = seen.repeat_interleave(2, 1)  # (B, 2 T, T)
    if mask is None and (window is None or window >= steps):
        return None, of_returns[:, None]
    of_tokens = of_returns.repeat_interleave(2, 2).tril()  # a state does not see the action of its step
    return of_tokens[:, None], of_returns[:, None]
