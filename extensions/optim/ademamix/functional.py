"""The AdEMAMix update on lists of tensors: a for-loop that is the oracle, a foreach and a fused path."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress
from typing import Any, NamedTuple

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
from .schedules import Schedules, StepCoefficients

# Elements a thread that the foreach path takes at a time on a CPU, so that what one operation leaves is in
# the cache for the next. Fewer cost more in calls than they gain.
CPU_BATCH = 131_072


class Moments(NamedTuple):
    """What a step reads and writes, one entry a parameter; ``exp_avgs`` is empty where beta1 is 0."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]  # m1, fast
    exp_avg_slows: list[Tensor]  # m2
    exp_avg_sqs: list[Tensor]  # nu
    state_steps: list[Tensor]
    slow_starts: list[Tensor]


def _single_tensor_ademamix(
    tensors: Moments,
    schedules: Schedules,
    *,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
    capturable: bool,
    differentiable: bool,
) -> None:
    lr = _to_scalar(lr)
    for i, param in enumerate(tensors.params):
        grad = -tensors.grads[i] if maximize else tensors.grads[i]
        exp_avg_slow, exp_avg_sq = tensors.exp_avg_slows[i], tensors.exp_avg_sqs[i]
        step, slow_start = tensors.state_steps[i], tensors.slow_starts[i]
        if capturable:
            _check_capturable([param], [step])

        step += 1
        scalars_are_tensors = capturable or differentiable or torch.compiler.is_compiling()
        if scalars_are_tensors:
            at = schedules.at(step, slow_start)
        else:
            at = schedules.at(_get_value(step), _get_value(slow_start))

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
    tensors: Moments,
    schedules: Schedules,
    *,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
    capturable: bool,
    differentiable: bool,
) -> None:
    if not tensors.params:
        return
    if isinstance(lr, Tensor) and not capturable:
        raise RuntimeError("lr as a Tensor is not supported for capturable=False and foreach=True")
    if capturable:
        _check_capturable(tensors.params, tensors.state_steps)
    if differentiable:
        raise AssertionError("_foreach ops don't support autograd")

    lr = _to_scalar(lr)
    scalars_are_tensors = capturable or torch.compiler.is_compiling()
    if tensors.state_steps[0].is_cpu and not torch.compiler.is_compiling():
        # A number would be wrapped into a tensor once for each step.
        torch._foreach_add_(tensors.state_steps, torch.tensor(1.0, device="cpu"), alpha=1.0)
    else:
        torch._foreach_add_(tensors.state_steps, 1)

    for batch in _batches(tensors, schedules, scalars_are_tensors):
        _multi_tensor_batch(
            batch,
            schedules,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            maximize=maximize,
            scalars_are_tensors=scalars_are_tensors,
        )


class Batch(NamedTuple):
    """Tensors of one device and type, whole or in flat pieces, with their coefficients."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_slows: list[Tensor]
    exp_avg_sqs: list[Tensor]
    at: list[StepCoefficients]


def _multi_tensor_batch(
    batch: Batch,
    schedules: Schedules,
    *,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
    scalars_are_tensors: bool,
) -> None:
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
    slow_rates = [_like(at.slow_rate, m) for at, m in zip(batch.at, batch.exp_avg_slows, strict=True)]
    torch._foreach_lerp_(batch.exp_avg_slows, grads, slow_rates)
    torch._foreach_mul_(batch.exp_avg_sqs, schedules.beta2)
    torch._foreach_addcmul_(batch.exp_avg_sqs, grads, grads, 1 - schedules.beta2)

    # sqrt(v) / r + eps = (sqrt(v) + r eps) / r, and the step size takes the r: one pass less.
    denominators: Any = torch._foreach_sqrt(batch.exp_avg_sqs)
    torch._foreach_add_(denominators, [eps * at.root_square_correction for at in batch.at])
    fast_sizes = [-(lr * at.root_square_correction / at.fast_correction) for at in batch.at]
    if scalars_are_tensors:
        # addcdiv takes no factors on the device, so the numerator has them.
        slow_weights = [at.alpha * at.fast_correction for at in batch.at]
        numerators: Any = torch._foreach_mul(batch.exp_avg_slows, slow_weights)
        torch._foreach_add_(numerators, fasts)
        torch._foreach_mul_(numerators, fast_sizes)
        torch._foreach_addcdiv_(weights, numerators, denominators)
    else:
        # Two passes over the weights spare a list of numerators.
        slow_sizes = [-(lr * at.root_square_correction * at.alpha) for at in batch.at]
        torch._foreach_addcdiv_(weights, fasts, denominators, fast_sizes)
        torch._foreach_addcdiv_(weights, batch.exp_avg_slows, denominators, slow_sizes)
    if not in_place:
        torch._foreach_copy_(batch.params, weights)


def _batches(tensors: Moments, schedules: Schedules, scalars_are_tensors: bool) -> Iterator[Batch]:
    """One batch for each device and type; on a CPU many, each small enough for the cache."""
    if scalars_are_tensors:
        coefficients = _coefficients_as_tensors(tensors, schedules)
    else:
        coefficients = [
            schedules.at(_get_value(step), _get_value(start))
            for step, start in zip(tensors.state_steps, tensors.slow_starts, strict=True)
        ]
    exp_avgs = tensors.exp_avgs or tensors.grads  # the latter to have something to pass along
    by_type: dict[Any, list[Any]] = {}
    for row in zip(
        tensors.params,
        tensors.grads,
        exp_avgs,
        tensors.exp_avg_slows,
        tensors.exp_avg_sqs,
        coefficients,
        strict=True,
    ):
        p, g = row[0], row[1]
        by_type.setdefault((p.device, p.dtype, g.dtype), []).append(row)

    for (device, *_), rows in by_type.items():
        if device.type != "cpu" or torch.compiler.is_compiling():
            yield Batch(*map(list, zip(*rows, strict=True)))
            continue
        most = CPU_BATCH * torch.get_num_threads()
        batch: list[Any] = []
        elements = 0
        for row in rows:
            for piece in _pieces(row, most):
                if batch and elements + piece[0].numel() > most:
                    yield Batch(*map(list, zip(*batch, strict=True)))
                    batch, elements = [], 0
                batch.append(piece)
                elements += piece[0].numel()
        if batch:
            yield Batch(*map(list, zip(*batch, strict=True)))


def _pieces(row: Any, most: int) -> Iterator[Any]:
    """The tensors of a row in flat pieces of at most ``most`` elements; whole if they do not lie alike."""
    *tensors, at = row
    if tensors[0].numel() <= most or not all(t.is_contiguous() for t in tensors):
        yield row
    else:
        for pieces in zip(*(t.view(-1).split(most) for t in tensors), strict=True):
            yield (*pieces, at)


def _coefficients_as_tensors(tensors: Moments, schedules: Schedules) -> list[StepCoefficients]:
    """The coefficients of each parameter as 0-dim tensors, without a look at the device's numbers."""
    at = schedules.at(torch.stack(tensors.state_steps), torch.stack(tensors.slow_starts))  # (n,) each
    n = len(tensors.params)
    columns = [value.unbind() if isinstance(value, Tensor) else [value] * n for value in at]
    return [StepCoefficients(*values) for values in zip(*columns, strict=True)]


@torch.compiler.disable
def _fused_ademamix(
    tensors: Moments,
    schedules: Schedules,
    *,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
    capturable: bool,
    differentiable: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    if differentiable:
        raise RuntimeError("AdEMAMix with fused=True does not support differentiable=True")
    for device, part in _by_device(tensors):
        scale = None if grad_scale is None else grad_scale.to(device, non_blocking=True)
        inf = None if found_inf is None else found_inf.to(device, non_blocking=True)
        update = fused_update_for(device)
        if update is not None:
            update(
                part,
                schedules,
                lr=lr,
                weight_decay=weight_decay,
                eps=eps,
                maximize=maximize,
                grad_scale=scale,
                found_inf=inf,
            )
        elif inf is None or not inf.item():
            if scale is not None:
                torch._foreach_div_(part.grads, scale)
            _single_tensor_ademamix(
                part,
                schedules,
                lr=lr,
                weight_decay=weight_decay,
                eps=eps,
                maximize=maximize,
                capturable=capturable,
                differentiable=False,
            )


def _by_device(tensors: Moments) -> Iterator[tuple[torch.device, Moments]]:
    devices = list(dict.fromkeys(p.device for p in tensors.params))
    if len(devices) == 1:
        yield devices[0], tensors
        return
    for device in devices:
        here = [p.device == device for p in tensors.params]
        yield device, Moments(*(list(compress(ts, here)) for ts in tensors))


@_disable_dynamo_if_unsupported(single_tensor_fn=_single_tensor_ademamix)
def ademamix(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_slows: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    slow_starts: list[Tensor],
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
    ``state_steps`` and ``slow_starts`` hold a 0-dim tensor a parameter: the steps made so far, and after how
    many of them the slow average was begun.

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

    tensors = Moments(params, grads, exp_avgs, exp_avg_slows, exp_avg_sqs, state_steps, slow_starts)
    if has_complex:
        _view_as_real(params, *[t for t in (grads, exp_avgs, exp_avg_slows, exp_avg_sqs) if t])
    schedules = Schedules(beta1, beta2, beta3, alpha, alpha_warmup, beta3_warmup)
    options: dict[str, Any] = {
        "lr": lr,
        "weight_decay": weight_decay,
        "eps": eps,
        "maximize": maximize,
        "capturable": capturable,
        "differentiable": differentiable,
    }
    if fused:
        _fused_ademamix(_local(tensors), schedules, **options, grad_scale=grad_scale, found_inf=found_inf)
        return
    if grad_scale is not None or found_inf is not None:
        raise AssertionError("Expected grad_scale and found_inf to be None")
    if foreach:
        _multi_tensor_ademamix(_local(tensors), schedules, **options)
    else:
        _single_tensor_ademamix(tensors, schedules, **options)


def _local(tensors: Moments) -> Moments:
    """This rank's shards, if the parameters are DTensors: the update is elementwise, so it needs no more."""
    if not any(hasattr(p, "to_local") for p in tensors.params):
        return tensors
    shards = tensors._asdict()
    for name in ("params", "grads", "exp_avgs", "exp_avg_slows", "exp_avg_sqs"):
        lists = zip(shards[name], tensors.params)  # noqa: B905 (there are no exp_avgs where beta1 is 0)
        shards[name] = [_shard(t, like=p) for t, p in lists]
    return Moments(**shards)


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
