"""AdEMAMix whose moments take a quarter of the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .._torch import ParamsT, _maximize_doc, _params_doc, _to_scalar
from . import adamw, diagnostics
from .blockwise import BLOCK, Codes, Settings, blocks_of, decode_moments, encode_moments, update
from .optimizer import AdEMAMix
from .schedules import Schedules
from .state import MOMENTS, new_counter

FAST = ("exp_avg_codes", "exp_avg_scale")
SLOW = ("exp_avg_slow_codes", "exp_avg_slow_scale")
ROOT = ("exp_avg_sq_codes", "exp_avg_sq_range")
TYPES = dict(
    zip((*FAST, *SLOW, *ROOT), (torch.int8, torch.float32) * 2 + (torch.uint8, torch.float32), strict=True)
)


class AdEMAMix8bit(AdEMAMix):
    # The docstring follows the class, as AdEMAMix's.

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
        min_8bit_size: int = 4096,
    ) -> None:
        flags = {
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        _check_settings({**flags, "min_8bit_size": min_8bit_size})
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            alpha=alpha,
            alpha_warmup=alpha_warmup,
            beta3_warmup=beta3_warmup,
            maximize=maximize,
            **flags,  # type: ignore[arg-type]
        )
        self.defaults["min_8bit_size"] = min_8bit_size
        for group in self.param_groups:
            group.setdefault("min_8bit_size", min_8bit_size)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            _check_settings(param_group)
        super().add_param_group(param_group)
        try:
            for p in self.param_groups[-1]["params"]:
                _check_parameter(p)
        except RuntimeError:
            self.param_groups.pop()
            raise

    def _step_group(self, group: dict[str, Any]) -> None:
        kept_whole: list[Tensor] = []
        for p in group["params"]:
            state = self.state.get(p)
            if _is_coded(state) if state else p.numel() >= group["min_8bit_size"]:
                if p.grad is not None:
                    self._step_coded(p, group)
            else:
                kept_whole.append(p)
        super()._step_group({**group, "params": kept_whole})

    @torch.compiler.disable
    def _step_coded(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        if p.grad.is_sparse:
            self._refuse_sparse()
        state = self.state[p]
        if not state:
            state.update(_new_state(p, group))
        beta1, beta2, beta3 = group["betas"]
        if beta1 > 0 and "slow_share" not in state:  # a scheduler has written beta1
            state.update({name: new for name, new in _new_state(p, group).items() if name not in state})
        schedules = Schedules(
            beta1, beta2, beta3, group["alpha"], group["alpha_warmup"], group["beta3_warmup"]
        )
        state["step"] += 1
        state["slow_step"] += 1
        t = state["step"].item()
        at = schedules.at(t, state["slow_step"].item())
        has_fast = FAST[0] in state or beta1 > 0
        share = new_share = 0.0
        if has_fast:
            share = state["slow_share"].item()
            new_share = state["slow_share"].fill_(at.slow_rate / (1 - beta1)).item()
        settings = Settings(
            float(_to_scalar(group["lr"])),
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            group["maximize"],
            share,
            new_share,
        )
        # The codes are in the order of the elements, however the parameter lies in memory.
        flat = p.reshape(-1)
        update(flat, p.grad.reshape(-1), _codes(state, has_fast), at, settings, int(t))
        if flat.data_ptr() != p.data_ptr():
            p.copy_(flat.view_as(p))

    def _check_state_dict(self, state_dict: dict[str, Any]) -> None:
        _check_state_dict(self, state_dict)

    def _restore_types(self, loaded: dict[str, Any]) -> None:
        super()._restore_types(loaded)
        # torch casts codes as well.
        ids = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for i, p in zip(ids, parameters, strict=True):
            saved = loaded["state"].get(i, {})
            for name, dtype in TYPES.items():
                if name in saved:
                    self.state[p][name] = saved[name].to(dtype=dtype, device=p.device)
            if "slow_share" in saved:
                self.state[p]["slow_share"] = saved["slow_share"].to(self.state[p]["step"])

    @classmethod
    def from_adamw(
        cls,
        optimizer: torch.optim.AdamW,
        *,
        beta3: float = 0.9999,
        alpha: float = 5.0,
        alpha_warmup: float | None = None,
        beta3_warmup: float | None = None,
        min_8bit_size: int = 4096,
    ) -> AdEMAMix8bit:
        """As :meth:`AdEMAMix.from_adamw`; its moments are rounded. ``foreach`` and ``fused`` are let go."""
        adamw.check_adamw(optimizer)
        one_path: dict[str, Any] = {"foreach": None, "fused": None}
        new = cls(
            [{**group, **one_path} for group in adamw.groups_for_ademamix(optimizer, beta3)],
            **{**adamw.settings_for_ademamix(optimizer, beta3), **one_path},
            alpha=alpha,
            alpha_warmup=alpha_warmup,
            beta3_warmup=beta3_warmup,
            min_8bit_size=min_8bit_size,
        )
        for group in new.param_groups:
            for p in group["params"]:
                if p not in optimizer.state:
                    continue
                counter = new_counter(optimizer.state[p]["step"].item(), p, group)
                theirs = {**optimizer.state[p], "step": counter}
                if p.numel() < min_8bit_size:
                    new.state[p] = adamw.state_for_ademamix(p, theirs, group)
                    continue
                state = {**_new_state(p, group), "step": counter, "slow_step": torch.zeros_like(counter)}
                has_fast = group["betas"][0] > 0
                encode_moments(
                    _codes(state, has_fast),
                    theirs["exp_avg"].reshape(-1) if has_fast else None,
                    theirs["exp_avg_sq"].reshape(-1),
                    int(counter.item()),
                )
                new.state[p] = state
        return new

    def to_adamw(self) -> torch.optim.AdamW:
        """As :meth:`AdEMAMix.to_adamw`: the moments are float again."""
        return adamw.to_adamw(self, _Decoded(self.state))

    @torch.no_grad()
    def reset_slow(self) -> None:
        """Empty the slow average and begin its schedules anew, e.g. when the data or the task changes."""
        for state in filter(None, self.state.values()):
            for name in SLOW if _is_coded(state) else ("exp_avg_slow",):
                state[name].zero_()
            if "slow_share" in state:
                state["slow_share"].zero_()
            state["slow_step"].zero_()

    def diagnostics(self) -> list[dict[str, float]]:
        """What the slow average does, a dict a group; see :mod:`extensions.optim.ademamix.diagnostics`."""
        return [diagnostics.of_group(group, _Decoded(self.state)) for group in self.param_groups]


def _new_state(p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    state = {"step": new_counter(0.0, p, group), "slow_step": new_counter(0.0, p, group)}
    names: tuple[str, ...] = (*SLOW, *ROOT)
    if group["betas"][0] > 0:
        names = (*FAST, *names)
        state["slow_share"] = new_counter(0.0, p, group)
    shapes = _shapes(p)
    for name in names:
        state[name] = torch.zeros(shapes[name], dtype=TYPES[name], device=p.device)
    return state


def _shapes(p: Tensor) -> dict[str, tuple[int, ...]]:
    blocks = blocks_of(p.numel())
    shapes: dict[str, tuple[int, ...]] = {
        name: tuple(p.shape) if name.endswith("_codes") else (blocks,) for name in TYPES
    }
    return {**shapes, ROOT[1]: (blocks, 2)}


def _is_coded(state: Mapping[str, Any]) -> bool:
    return ROOT[0] in state


def _codes(state: Mapping[str, Any], has_fast: bool) -> Codes:
    fast, fast_scale = (state[name] if has_fast else None for name in FAST)
    return Codes(fast, fast_scale, *(state[name] for name in (*SLOW, *ROOT)))


class _Decoded(Mapping[Tensor, dict[str, Any]]):
    """An optimizer's state with float moments, each decoded when it is asked for."""

    def __init__(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        self.state = state

    def __getitem__(self, p: Tensor) -> dict[str, Any]:
        if p not in self.state:  # a defaultdict would make one
            raise KeyError(p)
        state = self.state[p]
        if not _is_coded(state):
            return state
        has_fast = FAST[0] in state
        share = state["slow_share"].item() if has_fast else 0.0
        moments = dict(zip(MOMENTS, decode_moments(_codes(state, has_fast), share), strict=True))
        floats = {name: moment.view_as(p) for name, moment in moments.items() if moment is not None}
        return {"step": state["step"], "slow_step": state["slow_step"], **floats}

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def _check_settings(group: dict[str, Any]) -> None:
    for flag in ("foreach", "fused", "capturable", "differentiable"):
        if group.get(flag):
            raise RuntimeError(
                f"AdEMAMix8bit does not support {flag}=True: leave it out, it has one path for all devices, "
                f"or use AdEMAMix with {flag}=True, whose moments are float32"
            )
    size = group.get("min_8bit_size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"Invalid min_8bit_size value: {size} (a number of elements)")


def _check_parameter(p: Tensor) -> None:
    if torch.is_complex(p):
        raise RuntimeError(
            "AdEMAMix8bit does not support complex parameters: use AdEMAMix, or optimize "
            "torch.view_as_real of them"
        )
    if hasattr(p, "to_local"):
        raise RuntimeError(
            "AdEMAMix8bit does not support DTensor parameters, whose shards would cut through its blocks: "
            "use AdEMAMix, of whose moments each rank has its shard"
        )


def _check_state_dict(optimizer: AdEMAMix8bit, state_dict: dict[str, Any]) -> None:
    """As ``checks.check_state_dict``, for moments of either kind."""
    for group in state_dict["param_groups"]:
        if "min_8bit_size" not in group:
            way_out = "Load it into the optimizer that it was saved from"
            if len(group.get("betas", ())) == 2:
                way_out += ", and go on from AdamW with AdEMAMix8bit.from_adamw(adamw)"
            raise ValueError(f"loaded state dict is not of AdEMAMix8bit. {way_out}")
    ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    groups = chain.from_iterable([group] * len(group["params"]) for group in state_dict["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for i, group, p in zip(ids, groups, parameters, strict=False):
        saved = state_dict["state"].get(i)
        if not saved:
            continue
        shapes = _shapes(p)
        if not _is_coded(saved):
            shapes = dict.fromkeys(MOMENTS, tuple(p.shape))
        if group["betas"][0] == 0:
            shapes = {name: shape for name, shape in shapes.items() if name not in (*FAST, "exp_avg")}
        names = ("step", *shapes, *(("slow_share",) if FAST[0] in shapes else ()))
        missing = [name for name in names if name not in saved]
        if missing:
            raise ValueError(
                f"loaded state dict lacks {', '.join(missing)} for parameter {i}: it is of another "
                "optimizer or was cut short"
            )
        for name, shape in shapes.items():
            if tuple(saved[name].shape) != shape:
                raise ValueError(
                    f"loaded state dict has {name} of shape {tuple(saved[name].shape)} for parameter {i}, "
                    f"where it is {shape}: it was saved for another model, or another order of parameters"
                )


AdEMAMix8bit.__doc__ = rf"""Implements AdEMAMix with moments in 8 bits: 3.06 bytes a parameter, not 12.

    The algorithm and its arguments are those of :class:`AdEMAMix`. Between steps :math:`m_1`, :math:`m_2` and
    :math:`\nu` are kept as codes of one byte, with a float32 scale (for :math:`\nu` two) for each {BLOCK}
    elements; with ``betas[0] = 0`` they take 2.05 bytes. A step works in float32 on a few blocks at a time.

    :math:`\nu` is kept on a logarithmic scale from the least to the greatest of a block, and
    :math:`m_1, m_2` as multiples of :math:`\sqrt\nu`. A step changes :math:`m_2` and :math:`\nu` by far less
    than the distance of two codes, so they are rounded up or down by chance such that their mean is right.
    The chances are a function of the step and the element's index: no random generator is touched, two equal
    runs are equal, and a run that is resumed from ``state_dict`` goes on to the same bits.

    Parameters of less than ``min_8bit_size`` elements have float32 moments, as in AdEMAMix.

    Args:
        {_params_doc}
        lr, betas, eps, weight_decay, alpha, alpha_warmup, beta3_warmup: as in :class:`AdEMAMix`.
        {_maximize_doc}
        foreach, capturable, differentiable, fused: not supported; here for hosts that pass them as None or
            False.
        min_8bit_size (int, optional): elements below which a parameter's moments are float32, e.g. a very
            large number in the group of the embeddings (default: 4096)

    Raises:
        ValueError: a setting is out of its range, in any group.
        RuntimeError: a flag is not supported; a parameter is complex or a DTensor; a gradient is sparse.

    Example::

        steps = 10_000
        optimizer = AdEMAMix8bit(model.parameters(), lr=3e-4, betas=(0.9, 0.999, 0.999), weight_decay=0.1,
                                 alpha=5.0, alpha_warmup=steps, beta3_warmup=steps)
    """
