"""AdEMAMix, a ``torch.optim`` optimizer: Adam with a second, much slower average of the gradient."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor

from .._torch import (
    ParamsT,
    _capturable_doc,
    _device_dtype_check_for_fused,
    _differentiable_doc,
    _foreach_doc,
    _fused_doc,
    _maximize_doc,
    _params_doc,
    _use_grad_for_differentiable,
)
from . import adamw, diagnostics
from .checks import check_group, check_state_dict, with_plain_numbers
from .functional import ademamix
from .state import COUNTERS, MOMENTS, moment_dtype, moment_names, new_counter, new_moment

# torch's words, without the reference that leads nowhere outside its own pages.
_CAPTURABLE_DOC = _capturable_doc.replace(":ref:`accelerators<accelerators>`", "accelerators")


class AdEMAMix(torch.optim.Optimizer):
    # The docstring follows the class: it shares torch's words on the common arguments.

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        alpha: float = 5.0,
        alpha_warmup: float | None = None,
        beta3_warmup: float | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "alpha": alpha,
            "alpha_warmup": alpha_warmup,
            "beta3_warmup": beta3_warmup,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        defaults = with_plain_numbers(defaults)
        check_group(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            param_group.update(with_plain_numbers(param_group))
            check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["alpha"] > 1 and not group["alpha_warmup"]:
            warnings.warn(
                f"{type(self).__name__} with alpha > 1 and no alpha_warmup: the slow average has its full "
                "weight from the first step on, with which training tends to diverge early. Pass "
                "alpha_warmup=T and beta3_warmup=T, where T is the number of steps of the run; or alpha <= 1",
                stacklevel=_callers_level(),
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name in ("alpha_warmup", "beta3_warmup", "foreach", "fused"):
                group.setdefault(name, self.defaults.get(name))
            for name in ("maximize", "capturable", "differentiable"):
                group.setdefault(name, False)
            for p in group["params"]:
                p_state = self.state.get(p)
                if p_state:
                    # A slow average of which nothing else is said was begun at the first step.
                    p_state.setdefault("slow_step", float(p_state["step"]))
                    for name in COUNTERS:
                        if not isinstance(p_state[name], Tensor):
                            p_state[name] = new_counter(float(p_state[name]), p, group)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether ``torch.amp.GradScaler`` leaves unscaling, and skipping on infinities, to the step."""
        return all(group["fused"] for group in self.param_groups)

    def _init_group(
        self,
        group: dict[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_slows: list[Tensor],
        exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
        slow_steps: list[Tensor],
    ) -> bool:
        has_complex = False
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                self._refuse_sparse()
            has_complex |= torch.is_complex(p)
            params_with_grad.append(p)
            grads.append(p.grad)

            state = self.state[p]
            if len(state) == 0:
                if group["fused"]:
                    _device_dtype_check_for_fused(p)
                for name in COUNTERS:
                    state[name] = new_counter(0.0, p, group)
                for name in moment_names(group):
                    state[name] = new_moment(p)
            elif state["exp_avg_sq"].dtype != moment_dtype(p):
                raise RuntimeError(
                    f"a parameter of {p.dtype} has moments of {state['exp_avg_sq'].dtype}: it was cast after "
                    "the first step. optimizer.load_state_dict(optimizer.state_dict()) casts its moments too"
                )

            if group["betas"][0] > 0:
                # Schedulers may write beta1 (OneCycleLR does), and so begin or end a fast average.
                if "exp_avg" not in state:
                    state["exp_avg"] = new_moment(p)
                exp_avgs.append(state["exp_avg"])
            else:
                state.pop("exp_avg", None)
            exp_avg_slows.append(state["exp_avg_slow"])
            exp_avg_sqs.append(state["exp_avg_sq"])
            state_steps.append(state["step"])
            slow_steps.append(state["slow_step"])
            if group["differentiable"] and state["step"].requires_grad:
                raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
            if group["foreach"] and isinstance(group["lr"], Tensor) and not group["capturable"]:
                raise RuntimeError("lr as a Tensor is not supported for capturable=False and foreach=True")
        return has_complex

    def _refuse_sparse(self) -> NoReturn:
        raise RuntimeError(
            f"{type(self).__name__} does not support sparse gradients: build the nn.Embedding with "
            "sparse=False, or give it to extensions.optim.RowAdam or torch.optim.SparseAdam"
        )

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Perform a single optimization step.

        Args:
            closure: reevaluates the model and returns the loss.
        """
        self._accelerator_graph_capture_health_check()

        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        lists: tuple[list[Tensor], ...] = ([], [], [], [], [], [], [])
        params, grads, exp_avgs, exp_avg_slows, exp_avg_sqs, state_steps, slow_steps = lists
        has_complex = self._init_group(
            group, params, grads, exp_avgs, exp_avg_slows, exp_avg_sqs, state_steps, slow_steps
        )
        beta1, beta2, beta3 = group["betas"]
        ademamix(
            params,
            grads,
            exp_avgs,
            exp_avg_slows,
            exp_avg_sqs,
            state_steps,
            slow_steps,
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            fused=group["fused"],
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            has_complex=has_complex,
            beta1=beta1,
            beta2=beta2,
            beta3=beta3,
            alpha=group["alpha"],
            alpha_warmup=group["alpha_warmup"],
            beta3_warmup=group["beta3_warmup"],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As ``torch.optim.Optimizer.load_state_dict``, but the moments keep their precision.

        torch casts them to the type of the parameter, which for bfloat16 would stop the slow average.

        Raises:
            ValueError: the state is not AdEMAMix's; it says how to go on from AdamW's.
        """
        loaded: dict[str, Any] = {}

        def look(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            self._check_state_dict(state_dict)
            loaded.update(state_dict)

        # The last of the hooks before loading, to see what the others made of it; the first of those after.
        before = self.register_load_state_dict_pre_hook(look)
        after = self.register_load_state_dict_post_hook(lambda _: self._restore_types(loaded), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _check_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_state_dict(self, state_dict)

    def _restore_types(self, loaded: dict[str, Any]) -> None:
        """Take the moments and counters that torch has cast to the parameters' type from ``loaded`` again."""
        ids = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for i, p in zip(ids, parameters, strict=True):
            saved, state = loaded["state"].get(i, {}), self.state.get(p, {})
            for name in MOMENTS:
                if name in saved:
                    state[name] = saved[name].to(dtype=moment_dtype(p), device=p.device)
            if isinstance(saved.get("slow_step"), Tensor):
                state["slow_step"] = saved["slow_step"].to(state["step"])

    @classmethod
    def from_adamw(
        cls,
        optimizer: torch.optim.AdamW,
        *,
        beta3: float = 0.9999,
        alpha: float = 5.0,
        alpha_warmup: float | None = None,
        beta3_warmup: float | None = None,
    ) -> AdEMAMix:
        """Go on as AdEMAMix from where ``optimizer`` is (paper: section 4, "training switched in mid-run").

        The fast moments, the step counts and the settings of every group are taken over; the slow average is
        empty, and its schedules begin at the switch. Moments are not copied where they need no other type:
        ``optimizer`` is not to be stepped any more. An LR scheduler goes on once it is told, and so are those
        that it is made of:
        ``for s in (scheduler, *getattr(scheduler, "_schedulers", ())): s.optimizer = new``.

        Args:
            optimizer: a ``torch.optim.AdamW``, or an ``Adam`` with ``decoupled_weight_decay=True``.
            beta3, alpha, alpha_warmup, beta3_warmup: as in the constructor, for all groups. The steps of the
                warm-ups are counted from the switch.

        Raises:
            TypeError: not an AdamW.
            ValueError: it uses ``amsgrad``.
        """
        adamw.check_adamw(optimizer)
        new = cls(
            adamw.groups_for_ademamix(optimizer, beta3),
            **adamw.settings_for_ademamix(optimizer, beta3),
            alpha=alpha,
            alpha_warmup=alpha_warmup,
            beta3_warmup=beta3_warmup,
        )
        for group in new.param_groups:
            for p in group["params"]:
                if optimizer.state.get(p):
                    new.state[p] = adamw.state_for_ademamix(p, optimizer.state[p], group)
        return new

    def to_adamw(self) -> torch.optim.AdamW:
        """Go on as ``torch.optim.AdamW`` from where this optimizer is: the slow average is let go.

        The fast moments, step counts and settings are taken over, as in :meth:`from_adamw`. With beta1 = 0,
        AdamW's first moment begins at zero.
        """
        return adamw.to_adamw(self, self.state)

    @torch.no_grad()
    def reset_slow(self) -> None:
        """Empty the slow average and begin its schedules anew, e.g. when the data or the task changes."""
        for state in filter(None, self.state.values()):
            state["exp_avg_slow"].zero_()
            state["slow_step"].zero_()

    def diagnostics(self) -> list[dict[str, float]]:
        """What the slow average does, a dict a group; see :mod:`extensions.optim.ademamix.diagnostics`."""
        return [diagnostics.of_group(group, self.state) for group in self.param_groups]


def _callers_level() -> int:
    """The stack level, for a warning, of the first caller that is neither here nor in torch.optim."""
    level, frame = 2, sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith((__package__, "torch.")):
        level, frame = level + 1, frame.f_back
    return level


AdEMAMix.__doc__ = rf"""Implements the AdEMAMix algorithm: Adam with a second, much slower average.

    With :math:`t = 1, 2, \dots`, gradient :math:`g`, parameters :math:`\theta`, learning rate :math:`\gamma`
    and weight decay :math:`\lambda` (paper: algorithm 1):

    .. math::
        \begin{{aligned}}
        m_1 &\leftarrow \beta_1 m_1 + (1-\beta_1)\, g &&\text{{fast, as Adam's}} \\
        m_2 &\leftarrow \beta_3(t)\, m_2 + (1-\beta_3(t))\, g &&\text{{slow, not corrected for its bias}} \\
        \nu &\leftarrow \beta_2 \nu + (1-\beta_2)\, g^2 \\
        \theta &\leftarrow \theta - \gamma \left( \frac{{m_1/(1-\beta_1^t) + \alpha(t)\, m_2}}
            {{\sqrt{{\nu/(1-\beta_2^t)}} + \epsilon}} + \lambda\theta \right)
        \end{{aligned}}

    :math:`\alpha(t)` grows linearly over ``alpha_warmup`` steps, and the half-life of the slow average over
    ``beta3_warmup`` steps, from that of ``betas[0]`` to that of ``betas[2]``. The paper sets both to the
    number of steps of the run; without them, or with much shorter ones, training tends to diverge early.
    With ``alpha=0`` this is :class:`torch.optim.AdamW`.

    For parameters in bfloat16 or float16 the moments are float32, also after ``load_state_dict``.

    Args:
        {_params_doc}
        lr (float, Tensor, optional): learning rate (default: 1e-3). Steps get some :math:`1+\alpha` times as
            long as AdamW's, so it wants to be at most AdamW's. A tensor needs ``fused=True``,
            ``capturable=True`` or the for-loop.
        betas (tuple[float, float, float], optional): decays of the fast average, of the squared gradient
            and of the slow average, each in [0, 1) (default: (0.9, 0.999, 0.9999)). With ``betas[0] = 0`` the
            fast average is the gradient itself and takes no memory. The default ``betas[2]`` has a half-life
            of 6,931 steps, for runs of 100,000 and more; shorter ones want some 5% of their steps, which is
            ``0.5 ** (20 / steps)``.
        eps (float, optional): term added to the denominator (default: 1e-8)
        weight_decay (float, optional): decoupled, as AdamW's (default: 0)
        alpha (float, optional): weight of the slow average, >= 0; the paper's work in 4 to 10 (default: 5)
        alpha_warmup (float, optional): steps over which ``alpha`` grows from 0; None or 0 for none
            (default: None, with a warning if ``alpha`` > 1)
        beta3_warmup (float, optional): steps over which the slow average gets its full half-life; None or 0
            for none (default: None)
        {_maximize_doc}
        {_foreach_doc}
        {_CAPTURABLE_DOC}
        {_differentiable_doc}
        {_fused_doc}

    On the CPU ``fused`` compiles a small C++ kernel at its first use; on CUDA it is a Triton kernel. Where
    neither can be had the for-loop is used, with one warning.

    Every setting may differ from group to group, but ``differentiable``.

    Raises:
        ValueError: a setting is out of its range, in any group.
        RuntimeError: a combination of flags is not supported; a gradient is sparse.

    Example::

        steps = 10_000
        beta3 = 0.5 ** (20 / steps)
        optimizer = AdEMAMix(model.parameters(), lr=3e-4, betas=(0.9, 0.999, beta3), weight_decay=0.1,
                             alpha=5.0, alpha_warmup=steps, beta3_warmup=steps)

    Source: Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", 2024
    (arXiv 2409.03137).
    """
