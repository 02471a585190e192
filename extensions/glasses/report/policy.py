"""The report on a policy that is told a return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adapters import DecisionTransformerAdapter, RADTAdapter
from ..adapters.protocol import ROLES
from ..batches import place_of
from ..gap import representation_gap
from ..paths import path_profile
from ..precision import check_dtype, check_reference
from ..results import plain
from ..returns import last_steps, return_sensitivity
from ..sensitivity import sensitivity_profile
from .report import Part, Report


class PolicyReport(Report):
    """Gaps, sensitivities and behaviour of a sequence policy, on the same windows.

        report = PolicyReport(DecisionTransformerAdapter(actor), batch, contexts=(1, 5, 20)).run()
        report.save("runs/report")

    Args:
        model: in eval mode.
        batch: windows as its adapter takes them, at least two, as long as the longest context.
        contexts: K, ascending: the last so many real steps are looked at.
        dtypes: of gaps; the first is the reference.
        output: of the action as the network gives it, such as ``torch.tanh``; see `return_sensitivity`.
        behaviour: figures of how it follows returns when it acts, by name, such as those of
            ``extensions.torchrl.evaluate_targets``; they are set beside the rest.

    Raises:
        ValueError: train mode, contexts that do not ascend, no dtypes, fewer than two windows, a window
            without a real step.
    """

    def __init__(
        self,
        model: DecisionTransformerAdapter | RADTAdapter,
        batch: Any,
        contexts: Sequence[int],
        *,
        dtypes: Sequence[str] = ("float32", "bfloat16"),
        output: Callable[[Tensor], Tensor] | None = None,
        behaviour: Mapping[str, float | None] | None = None,
    ) -> None:
        super().__init__(model)
        if isinstance(contexts, int):
            raise TypeError(f"contexts must be a list: give ({contexts},) for one")
        if not contexts or list(contexts) != sorted(set(contexts)):
            raise ValueError(f"contexts must be at least one and ascending, got {list(contexts)}")
        if not dtypes:
            raise ValueError("dtypes must be at least one, such as float32")
        self.windows = [last_steps(batch, context) for context in contexts]
        if (count := len(self.windows[0]["return_to_go"])) < 2:
            raise ValueError(f"the spread of returns needs a batch of at least 2 windows, got {count}")
        for window in self.windows:
            self._newest(window)  # refuses windows without one
        self.contexts, self.dtypes = tuple(contexts), list(dict.fromkeys(map(check_dtype, dtypes)))
        check_reference(self.dtypes[0], self.dtypes)
        self.output, self.behaviour = output, dict(behaviour or {})

    def plan(self) -> Iterator[tuple[str, Callable[[], Part]]]:
        """What returns do, what precision leaves of it, on which tokens the action hangs, and how it acts."""
        yield "returns", self._returns
        yield "return_gap", self._gaps
        yield "tokens", self._tokens
        if self.behaviour:
            yield "behaviour", partial(_behaviour, self.behaviour)

    def _returns(self) -> Part:
        found = [return_sensitivity(self.model, window, output=self.output) for window in self.windows]
        names = ("newest_token", "all_return_tokens", "state_token", "shift_newest", "shift_all")
        means = {name: [getattr(x, name).double().mean().item() for x in found] for name in names}
        verdicts = [
            f"returns: with {k} steps in sight the newest return has {means['newest_token'][i]:.2%} of the "
            f"action's sensitivity, all returns {means['all_return_tokens'][i]:.2%}, the newest state "
            f"{means['state_token'][i]:.2%}; a newest return one standard deviation higher moves the action "
            f"by {means['shift_newest'][i]:.3g}, all returns by {means['shift_all'][i]:.3g}"
            for i, k in enumerate(self.contexts)
        ]
        return {"contexts": list(self.contexts), **means, "verdicts": verdicts}

    def _gaps(self) -> Part:
        """Of windows and the same with a newest return that is one standard deviation higher."""
        reference, *others = self.dtypes
        gaps: list[float] = []
        rounding: dict[str, list[float]] = {name: [] for name in others}
        for window in self.windows:
            returns = window["return_to_go"]
            higher = returns.clone()
            newest = torch.arange(len(returns), device=returns.device), self._newest(window)
            higher[newest] += returns[newest].std()
            report = representation_gap(
                self.model,
                window,
                {**window, "return_to_go": higher},
                layers=[-1],
                dtypes=others,
                reference=reference,
                norms=("l1",),
            )
            gaps.append(report.gap[reference].mean().item())
            for name in others:
                rounding[name].append(report.rounding[name].mean().item())
        snr = {
            name: [gap / noise for gap, noise in zip(gaps, rounding[name], strict=True)] for name in others
        }
        verdicts = [
            f"return_gap: with {self.contexts[-1]} steps in sight a newest return one standard deviation "
            f"higher moves the state by {gaps[-1]:.3g} (L1, {reference}), {snr[name][-1]:.3g} times its "
            f"rounding in {name}"
            for name in others
        ]
        return {
            "contexts": list(self.contexts),
            "reference": reference,
            "gap": gaps,
            "rounding": rounding,
            "snr": snr,
            "verdicts": verdicts,
        }

    def _tokens(self) -> Part:
        """Shares at the longest context, means over windows."""
        window, roles = self.windows[-1], self.model.token_roles
        profiles = {
            kind: sensitivity_profile(self.model, window, attention=kind, output=self._act)
            for kind in ("full", "frozen")
        }
        found: Part = {kind: plain(profile.share.mean(0)) for kind, profile in profiles.items()}
        # RADT attends to returns apart from the rest, so that its weights do not make one row
        if isinstance(self.model, DecisionTransformerAdapter):
            weights = self.model.attentions(self.model.embed(window), self.model.mask(window))
            assert weights is not None
            path = path_profile(weights, target=profiles["full"].target.to(weights[0].device))
            found["path"] = plain((path / path.sum(1, keepdim=True)).mean(0))
        full = profiles["full"]
        assert full.per_role_sum is not None
        by_role = full.per_role_sum.double().mean(0).tolist()
        ratio = (profiles["frozen"].fro.sum() / full.fro.sum()).item()
        shares = ", ".join(f"{ROLES[i]}s {x:.1%}" for i, x in enumerate(by_role))
        return {
            "context": self.contexts[-1],
            "roles": [ROLES[role] for role in roles],
            **found,
            "by_role": dict(zip(ROLES, by_role, strict=False)),
            "frozen_over_full": ratio,
            "verdicts": [
                f"tokens: with {self.contexts[-1]} steps in sight the action hangs on {shares}; without the "
                f"derivative of the attention weights {ratio:.0%} of that is left"
            ],
        }

    def _newest(self, window: dict[str, Tensor]) -> Tensor:
        """The last real step of each window, (B,)."""
        windows, steps = window["return_to_go"].shape[:2]
        mask, a_step = self.model.mask(window), len(self.model.token_roles)
        if mask is not None and not bool(mask.any(1).all()):
            raise ValueError("each window needs a real step; the mask of some has none")
        place = place_of(self.model.position, steps * a_step, mask)  # of the state
        return torch.as_tensor(place, device=window["return_to_go"].device).expand(windows) // a_step

    def _act(self, state: Tensor) -> Tensor:
        action = self.model.readout(state)
        return action if self.output is None else self.output(action)


def _behaviour(figures: dict[str, float | None]) -> Part:
    said = ", ".join(f"{name} {value:.3g}" for name, value in figures.items() if value is not None)
    return {"figures": figures, "verdicts": [f"behaviour: {said}"]}
