"""Grid points near a point, by arithmetic: nothing of size n is ever made."""

from __future__ import annotations

import torch
from torch import Tensor

from extensions.stochmax import MixedRadix


def nearest_id(codec: MixedRadix, points: Tensor) -> Tensor:
    """The id whose features are nearest to each of ``points`` (..., d), clipped to [-1, 1]: (...)."""
    top = codec.nvec - 1
    place = (points.double().clamp(-1.0, 1.0) + 1.0) / 2.0 * top  # (..., d) on the grid
    return (torch.minimum(place.round().long(), top) * codec.place).sum(-1)


def nearest_ids(codec: MixedRadix, points: Tensor, k: int) -> Tensor:
    """The k ids whose features are nearest to each of ``points``, exactly, the nearest first.

    Digit by digit: of the ids made of the first digits only the k nearest can be part of the k nearest of
    all, and of the values of the next digit only the k nearest. That is O(d k min(k, m)) for d digits of m
    values, whatever n is. Of ids that are equally far any may be among the k, and come first.

    Args:
        codec: a grid over [-1, 1]^d, end points included; not one-hot.
        points: (B, d). k: how many; all n if there are fewer.

    Returns:
        ids (B, min(k, n)) int64.
    """
    digits, near = _nearest_digits(codec.nvec, points.double(), k)
    ids = torch.zeros(len(points), 1, dtype=torch.int64, device=points.device)
    far = torch.zeros(len(points), 1, dtype=torch.float64, device=points.device)  # squared distance
    for j, (m, place) in enumerate(zip(codec.nvec.tolist(), codec.place.tolist(), strict=True)):
        w = min(k, m)
        ids = (ids.unsqueeze(1) + digits[:, j, :w, None] * place).flatten(1)  # (B, w * ids so far)
        far = (far.unsqueeze(1) + near[:, j, :w, None]).flatten(1)
        if ids.shape[1] > k:
            far, kept = far.topk(k, dim=1, largest=False, sorted=False)
            ids = ids.gather(1, kept)
    return ids.gather(1, far.argsort(dim=1))


def _nearest_digits(nvec: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """For each digit the values nearest to ``points`` (B, d), and their squared distances: (B, d, w), of
    which the first min(k, m) count for a digit of m values."""
    w = nvec.clamp(max=k)  # (d,)
    step = 2.0 / (nvec - 1).clamp(min=1).double()
    # w neighbours in a row, as many below the point as above, and then moved onto the grid
    first = torch.ceil((points + 1.0) / step - w / 2.0)  # (B, d)
    first = torch.minimum(first.clamp(min=0.0), (nvec - w).double())
    digits = first.long().unsqueeze(2) + torch.arange(int(w.max()), device=points.device)
    far = digits * step.unsqueeze(1) - 1.0 - points.unsqueeze(2)
    return digits, far.square()
