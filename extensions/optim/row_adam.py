"""Adam for networks that hold a table of which a step touches few rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..lazy_zeros import flagged, lazy_zeros

ROW_STATE = ("row_step", "exp_avg", "exp_avg_sq")


class RowAdam(torch.optim.Adam):
    r"""Adam whose sparse gradients update only the rows they name.

    Parameters with a dense gradient are handed to :class:`torch.optim.Adam` unchanged. For a parameter of
    shape (n, d) with a sparse gradient, row :math:`i` of the gradient advances row :math:`i` of the moments
    and its *own* step count :math:`t_i`, so bias correction is exact however rarely a row is met:

    .. math::
        m_i \leftarrow \beta_1 m_i + (1-\beta_1) g_i, \quad
        v_i \leftarrow \beta_2 v_i + (1-\beta_2) g_i^2, \quad
        w_i \leftarrow w_i - \text{lr}\cdot s\,
        \frac{m_i / (1-\beta_1^{t_i})}{\sqrt{v_i / (1-\beta_2^{t_i})} + \epsilon}

    with :math:`s` = ``row_lr_scale``. Rows that the gradient does not name are left exactly as they are
    (dense Adam would let their momentum coast). ``torch.optim.SparseAdam`` differs in that one global step
    count serves all rows, which leaves a row met late with no bias correction.

    A step costs O(rows touched); the moments live in (n, d) tensors whose untouched pages the operating
    system never has to back, and ``state_dict`` holds touched rows only.

    Args:
        params: parameters or groups, as for any ``torch.optim`` optimizer.
        lr, betas, eps: as in :class:`torch.optim.Adam`.
        row_lr_scale: the learning rate of sparse rows as a multiple of ``lr`` (> 0). A row is met about n/B
            times more rarely than the trunk, so it wants larger steps.
        foreach, capturable, fused: as in :class:`torch.optim.Adam`, for the dense parameters. A step of rows
            can always be captured in a CUDA graph.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        row_lr_scale: float = 1.0,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if not row_lr_scale > 0.0:
            raise ValueError(f"Invalid row_lr_scale: {row_lr_scale}")
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, foreach=foreach, capturable=capturable, fused=fused
        )
        for group in self.param_groups:
            group.setdefault("row_lr_scale", row_lr_scale)
        self.defaults["row_lr_scale"] = row_lr_scale

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch's Adam looks for its own "step" in every state.
        rows = {p: s for p, s in state["state"].items() if "row_step" in s}
        others = {p: s for p, s in state["state"].items() if "row_step" not in s}
        super().__setstate__({**state, "state": defaultdict(dict, others)})
        self.state.update(rows)
        for group in self.param_groups:
            group.setdefault("row_lr_scale", self.defaults["row_lr_scale"])

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        _check_kinds(self.state)
        # torch's Adam raises on a sparse gradient and skips a parameter without one.
        rows = [(group, p, p.grad) for group in self.param_groups for p in group["params"] if _is_sparse(p)]
        for _, p, _ in rows:
            p.grad = None
        _adam_step(self)
        for group, p, grad in rows:
            p.grad = grad
            self._step_rows(group, p, *sum_repeats(grad))
        return loss

    @torch.no_grad()
    def _step_rows(self, group: dict[str, Any], p: Tensor, ids: Tensor, g: Tensor) -> None:
        """A step of rows ``ids`` (R,) with gradients ``g`` (R, d), which repeat where ids do."""
        state = self.state[p]
        if not state:
            state.update(_empty_row_state(p))

        beta1, beta2 = group["betas"]
        # index_select reads rows in less than half the time of indexing.
        t = state["row_step"].index_select(0, ids) + 1  # (R,)
        m = state["exp_avg"].index_select(0, ids).lerp_(g, 1 - beta1)  # (R, d)
        v = state["exp_avg_sq"].index_select(0, ids).mul_(beta2).addcmul_(g, g, value=1 - beta2)
        # Repeats write the same numbers to the same place.
        state["row_step"][ids] = t
        state["exp_avg"][ids] = m
        state["exp_avg_sq"][ids] = v

        t = t.to(torch.float64)  # 1 - beta2**t loses half its digits in float32
        step_size = (group["lr"] * group["row_lr_scale"] / (1 - beta1**t)).to(p.dtype).unsqueeze(1)  # (R, 1)
        root_correction = (1 - beta2**t).sqrt().to(p.dtype).unsqueeze(1)
        denominator = v.sqrt_().div_(root_correction).add_(group["eps"])
        p[ids] = p.index_select(0, ids) - m.mul_(step_size).div_(denominator)

    def rows_touched(self, p: Tensor) -> Tensor:
        """Ids of the rows of ``p`` that ever had a gradient: (U,) int64, sorted."""
        state = self.state.get(p)
        return flagged(state["row_step"]) if state else torch.empty(0, dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the row states cut down to the rows touched."""
        packed = super().state_dict()
        packed["state"] = {
            index: _pack(state) if "row_step" in state else state for index, state in packed["state"].items()
        }
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # torch casts every state tensor to the parameter's dtype, which would round ids and counts.
        packed = {i: s for i, s in state_dict["state"].items() if "row_ids" in s}
        others = {i: s for i, s in state_dict["state"].items() if "row_ids" not in s}
        super().load_state_dict({**state_dict, "state": others})
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, state in packed.items():
            self.state[parameters[index]] = _unpack(state, parameters[index])


def clip_grad_norm_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """``torch.nn.utils.clip_grad_norm_`` (2-norm) that also counts and scales sparse gradients.

    Rows named twice in a sparse gradient count as the sum they are. With dense gradients alone this *is*
    torch's function, bit for bit.

    Returns:
        the total norm before clipping, a 0-dim tensor.
    """
    parameters = [p for p in parameters if p.grad is not None]
    if not any(_is_sparse(p) for p in parameters):
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    grads: list[Tensor] = [p.grad._values() if _is_sparse(p) else p.grad for p in parameters]  # type: ignore
    counted: list[Any] = [_once(p.grad) if _is_sparse(p) else p.grad for p in parameters]  # type: ignore
    total_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(counted)))
    torch._foreach_mul_(grads, (max_norm / (total_norm + 1e-6)).clamp(max=1.0))
    return total_norm


def sum_repeats(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that a sparse gradient names and their gradients: ids (R,), sorted, and sums (R, d).

    A row that it names r times is there r times, each with the whole sum: R does not depend on the data, so
    that nothing waits for it, as ``coalesce`` does on a GPU.
    """
    ids, sums, place = _group(grad)
    return ids, sums.index_select(0, place)


def _once(grad: Tensor) -> Tensor:
    """The sum of each row that a sparse gradient names, once, and zeros: (R, d)."""
    return _group(grad)[1]


def _group(grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted ids (R,), the sums of the distinct ones in order (R, d), and where the sum of each is (R,)."""
    ids, order = grad._indices()[0].sort(stable=True)
    values = grad._values()
    place = torch.zeros_like(ids)
    place[1:] = (ids[1:] != ids[:-1]).cumsum(0)
    return ids, torch.zeros_like(values).index_add_(0, place, values.index_select(0, order)), place


def _adam_step(optimizer: torch.optim.Adam) -> None:
    """``Adam.step`` without the hooks that torch wraps it in once a plain Adam exists: ours has them."""
    step: Any = torch.optim.Adam.step
    (step.__wrapped__ if getattr(step, "hooked", False) else step)(optimizer)


def _check_kinds(states: Any) -> None:
    """Raise RuntimeError where a parameter had sparse gradients and now has a dense one, or the reverse."""
    for p, state in states.items():
        if state and p.grad is not None and p.grad.is_sparse != ("row_step" in state):
            raise RuntimeError(
                f"a parameter {tuple(p.shape)} has had gradients sparse and dense, whose moments differ: "
                "give it one kind, or make a new RowAdam where it changes"
            )


def _is_sparse(p: Tensor) -> bool:
    return p.grad is not None and p.grad.is_sparse


def _empty_row_state(p: Tensor) -> dict[str, Any]:
    return {
        "row_step": lazy_zeros(p.shape[0], dtype=torch.int32, device=p.device),
        "exp_avg": lazy_zeros(*p.shape, dtype=p.dtype, device=p.device),
        "exp_avg_sq": lazy_zeros(*p.shape, dtype=p.dtype, device=p.device),
    }


def _pack(state: dict[str, Any]) -> dict[str, Tensor]:
    ids = flagged(state["row_step"])
    return {"row_ids": ids, **{key: state[key][ids] for key in ROW_STATE}}


def _unpack(packed: dict[str, Tensor], p: Tensor) -> dict[str, Any]:
    state = _empty_row_state(p)
    ids = packed["row_ids"].to(p.device)
    for key in ROW_STATE:
        state[key][ids] = packed[key].to(state[key])
    return state
