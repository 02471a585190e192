"""The AdEMAMix update on lists of tensors: a for-loop that is the oracle, a foreach and a fused path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._kernels.ademamix import fused_update_for
from .._torch import (
    _default_to_fused_or_foreach,
    _disable_dynamo_if_unsupported,
    _get_capturable_supported_devices,
    _get_value,
    _to_scalar,
    _view_as_real,
)
from .moments import Moments, StepSettings
from .schedules import Schedules, StepCoefficients

# Elements a thread that the foreach path takes at a time on a CPU, so that what one operation leaves is in
# the cache for the next. Fewer cost more in calls than they gain.
CPU_BATCH = 131_072


def _single_tensor_ademamix(
    tensors: Moments, schedules: Schedules, settings: StepSettings, *, capturable: bool, differentiable: bool
) -> None:
    lr, weight_decay, eps, maximize = settings
    for i, param in enumerate(tensors.params):
        grad = -tensors.grads[i] if maximize else tensors.grads[i]
        exp_avg_slow, exp_avg_sq = tensors.exp_avg_slows[i], tensors.exp_avg_sqs[i]
        step, slow_step = tensors.state_steps[i], tensors.slow_steps[i]
        if capturable:
            _check_capturable([param], [step])

        step += 1
        slow_step += 1
        scalars_are_tensors = capturable or differentiable or torch.compiler.is_compiling()
        if scalars_are_tensors:
            at = schedules.at(step, slow_step)
        else:
            at = schedules.at(_get_value(step), _get_value(slow_step))

        # Half-precision parameters have float32 moments, and are updated in float32 and rounded once.
        weights, grad = param.to(exp_avg_sq.dtype), grad.to(exp_avg_sq.dtype)
        if weight_decay != 0:
            weights.mul_(1 - lr * weight_decay)

        fast = grad
        if schedules.beta1 > 0:
            fast = tensors.exp_avgs[i].lerp_(grad, 1 - schedules.beta1)
        exp_avg_slow.lerp_(grad, _like(at.slow_rate, exp_avg_slow))
        exp_avg_sq.mul_(schedules.beta2).addcmul_(grad, grad, value=1 - schedules.beta2)

        # m1 / c + alpha m2 = (m1 + c alpha m2) / c, and the learning rate takes the 1 / c, as torch's Adam.
        numerator = (exp_avg_slow * (at.alpha * at.fast_correction)).add_(fast)
        denominator = (exp_avg_sq.sqrt() / at.root_square_correction).add_(eps)
        step_size = lr / at.fast_correction
        if scalars_are_tensors:
            weights.addcdiv_(numerator * -step_size, denominator)
        else:
            weights.addcdiv_(numerator, denominator, value=-step_size)
        if weights is not param:
            param.copy_(weights)


def _multi_tensor_ademamix(
    tensors: Moments, schedules: Schedules, settings: StepSettings, *, capturable: bool, differentiable: bool
) -> None:
    if not tensors.params:
        return
    if isinstance(settings.lr, Tensor) and not capturable:
        raise RuntimeError("lr as a Tensor is not supported for capturable=False and foreach=True")
    if capturable:
        _check_capturable(tensors.params, tensors.state_steps)
    if differentiable:
        raise AssertionError("_foreach ops don't support autograd")

    tensors.count_step()
    scalars_are_tensors = capturable or torch.compiler.is_compiling()
    for alike in tensors.split(lambda p, g: (p.device, p.dtype, g.dtype)):
        at = _coefficients(alike, schedules, scalars_are_tensors)
        for batch, batch_at in _batches(alike, at):
            _multi_tensor_batch(batch, batch_at, schedules, settings, scalars_are_tensors)


def _multi_tensor_batch(
    batch: Moments,
    at: list[StepCoefficients],
    schedules: Schedules,
    settings: StepSettings,
    scalars_are_tensors: bool,
) -> None:
    lr, weight_decay, eps, maximize = settings
    dtype = batch.exp_avg_sqs[0].dtype
    in_place = batch.params[0].dtype == dtype
    weights = batch.params if in_place else [p.to(dtype) for p in batch.params]
    grads: Any = batch.grads if batch.grads[0].dtype == dtype else [g.to(dtype) for g in batch.grads]
    if maximize:
        grads = torch._foreach_neg(grads)

    if weight_decay != 0:
        torch._foreach_mul_(weights, 1 - lr * weight_decay)

    fasts = grads
    if schedules.beta1 > 0:
        fasts = batch.exp_avgs
        torch._foreach_lerp_(fasts, grads, 1 - schedules.beta1)
    slow_rates = [_like(a.slow_rate, m) for a, m in zip(at, batch.exp_avg_slows, strict=True)]
    torch._foreach_lerp_(batch.exp_avg_slows, grads, slow_rates)
    torch._foreach_mul_(batch.exp_avg_sqs, schedules.beta2)
    torch._foreach_addcmul_(batch.exp_avg_sqs, grads, grads, 1 - schedules.beta2)

    # sqrt(v) / r + eps = (sqrt(v) + r eps) / r, and the step size takes the r: one pass less.
    denominators: Any = torch._foreach_sqrt(batch.exp_avg_sqs)
    torch._foreach_add_(denominators, [eps * a.root_square_correction for a in at])
    fast_sizes = [-(lr * a.root_square_correction / a.fast_correction) for a in at]
    if scalars_are_tensors:
        # addcdiv takes no factors on the device, so the numerator has them.
        slow_weights = [a.alpha * a.fast_correction for a in at]
        numerators: Any = torch._foreach_mul(batch.exp_avg_slows, slow_weights)
        torch._foreach_add_(numerators, fasts)
        torch._foreach_mul_(numerators, fast_sizes)
        torch._foreach_addcdiv_(weights, numerators, denominators)
    else:
        # Two passes over the weights spare a list of numerators.
        slow_sizes = [-(lr * a.root_square_correction * a.alpha) for a in at]
        torch._foreach_addcdiv_(weights, fasts, denominators, fast_sizes)
        torch._foreach_addcdiv_(weights, batch.exp_avg_slows, denominators, slow_sizes)
    if not in_place:
        torch._foreach_copy_(batch.params, weights)


def _coefficients(
    tensors: Moments, schedules: Schedules, scalars_are_tensors: bool
) -> list[StepCoefficients]:
    """The coefficients of each parameter, of one device: numbers, or 0-dim tensors without a look at them."""
    if not scalars_are_tensors:
        counters = zip(tensors.state_steps, tensors.slow_steps, strict=True)
        return [schedules.at(_get_value(step), _get_value(slow_step)) for step, slow_step in counters]
    at = schedules.at(torch.stack(tensors.state_steps), torch.stack(tensors.slow_steps))  # (n,) each
    n = len(tensors.params)
    columns = [value.unbind() if isinstance(value, Tensor) else [value] * n for value in at]
    return [StepCoefficients(*values) for values in zip(*columns, strict=True)]


def _batches(
    tensors: Moments, at: list[StepCoefficients]
) -> Iterator[tuple[Moments, list[StepCoefficients]]]:
    """All at once; on a CPU one after the other, each small enough for the cache."""
    if not tensors.params[0].is_cpu or torch.compiler.is_compiling():
        yield tensors, at
        return
    most = CPU_BATCH * torch.get_num_threads()
    batch: list[Any] = []
    elements = 0
    fasts = tensors.exp_avgs or tensors.grads  # the latter for a column that is not read
    columns = (tensors.params, tensors.grads, fasts, tensors.exp_avg_slows, tensors.exp_avg_sqs)
    for *of_one, of_one_at in zip(*columns, at, strict=True):
        for pieces in _pieces(of_one, most):
            n = pieces[0].numel()
            if batch and elements + n > most:
                yield _as_moments(batch)
                batch, elements = [], 0
            batch.append((*pieces, of_one_at))
            elements += n
    yield _as_moments(batch)


def _pieces(tensors: list[Tensor], most: int) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape in flat pieces of at most ``most`` elements; whole if they do not lie alike."""
    if tensors[0].numel() <= most or not all(t.is_contiguous() for t in tensors):
        yield tuple(tensors)
    else:
        yield from zip(*(t.view(-1).split(most) for t in tensors), strict=True)


def _as_moments(rows: list[Any]) -> tuple[Moments, list[StepCoefficients]]:
    p, g, m1, m2, v, at = map(list, zip(*rows, strict=True))
    return Moments(p, g, m1, m2, v, state_steps=[], slow_steps=[]), at


@torch.compiler.disable
def _fused_ademamix(
    tensors: Moments,
    schedules: Schedules,
    settings: StepSettings,
    *,
    capturable: bool,
    differentiable: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    if differentiable:
        raise RuntimeError("AdEMAMix with fused=True does not support differentiable=True")
    for part in tensors.split(lambda p, g: p.device):
        device = part.params[0].device
        scale = None if grad_scale is None else grad_scale.to(device, non_blocking=True)
        inf = None if found_inf is None else found_inf.to(device, non_blocking=True)
        update = fused_update_for(device)
        if update is not None:
            update(part, schedules, settings, grad_scale=scale, found_inf=inf)
        elif inf is None or not inf.item():
            if scale is not None:
                torch._foreach_div_(part.grads, scale)
            _single_tensor_ademamix(part, schedules, settings, capturable=capturable, differentiable=False)


@_disable_dynamo_if_unsupported(single_tensor_fn=_single_tensor_ademamix)
def ademamix(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_slows: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    slow_steps: list[Tensor],
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_complex: bool = False,
    *,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    alpha_warmup: float | None,
    beta3_warmup: float | None,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    r"""Functional API that performs AdEMAMix algorithm computation, in place.

    See :class:`~extensions.optim.AdEMAMix` for details. ``exp_avgs`` must be empty if ``beta1`` is 0.
    ``state_steps`` and ``slow_steps`` hold a 0-dim tensor a parameter: the steps made so far, and the steps
    since the slow average was begun.

    Raises:
        RuntimeError: ``state_steps`` are not tensors, or a combination of flags that is not supported.
    """
    # As in torch: the user's choice is respected; else foreach where it is native, and never fused.
    if fused is None and foreach is None:
        _, foreach = _default_to_fused_or_foreach(params, differentiable, use_fused=False)
        if foreach and isinstance(lr, Tensor) and not capturable:
            foreach = False

    if not torch.compiler.is_compiling() and not all(isinstance(t, Tensor) for t in state_steps):
        raise RuntimeError("API has changed, `state_steps` argument must contain a list of singleton tensors")

    if has_complex:
        _view_as_real(params, *[t for t in (grads, exp_avgs, exp_avg_slows, exp_avg_sqs) if t])
    tensors = Moments(params, grads, exp_avgs, exp_avg_slows, exp_avg_sqs, state_steps, slow_steps)
    schedules = Schedules(beta1, beta2, beta3, alpha, alpha_warmup, beta3_warmup)
    settings = StepSettings(_to_scalar(lr), weight_decay, eps, maximize)
    flags = {"capturable": capturable, "differentiable": differentiable}
    if fused:
        _fused_ademamix(
            _local(tensors), schedules, settings, **flags, grad_scale=grad_scale, found_inf=found_inf
        )
        return
    if grad_scale is not None or found_inf is not None:
        raise AssertionError("Expected grad_scale and found_inf to be None")
    if foreach:
        _multi_tensor_ademamix(_local(tensors), schedules, settings, **flags)
    else:
        _single_tensor_ademamix(tensors, schedules, settings, **flags)


def _local(tensors: Moments) -> Moments:
    """This rank's shards, if parameters are DTensors: the update is elementwise, so it needs no more."""
    if not any(hasattr(p, "to_local") for p in tensors.params):
        return tensors

    def shards(ts: list[Tensor]) -> list[Tensor]:
        return [_shard(t, like=p) for t, p in zip(ts, tensors.params, strict=True)] if ts else ts

    params, grads, exp_avgs, exp_avg_slows, exp_avg_sqs = map(shards, tensors[:5])
    return Moments(
        params, grads, exp_avgs, exp_avg_slows, exp_avg_sqs, tensors.state_steps, tensors.slow_steps
    )


def _shard(t: Any, like: Any) -> Tensor:
    if not hasattr(like, "to_local"):
        return t
    if t.placements != like.placements:
        t = t.redistribute(like.device_mesh, like.placements)
    return t.to_local()


def _like(value: Any, tensor: Tensor) -> Any:
    """A coefficient as lerp's weight: a number, or a 0-dim tensor of the type and device of ``tensor``."""
    return value.to(dtype=tensor.dtype, device=tensor.device) if isinstance(value, Tensor) else value


def _check_capturable(params: list[Tensor], steps: list[Tensor]) -> None:
    # If compiling, the compiler will handle cudagraph checks.
    if torch.compiler.is_compiling():
        return
    devices = _get_capturable_supported_devices(supports_xla=False)
    if not all(
        p.device.type == step.device.type and p.device.type in devices
        for p, step in zip(params, steps, strict=True)
    ):
        raise AssertionError(
            f"If capturable=True, params and state_steps must be on supported devices: {devices}."
        )
