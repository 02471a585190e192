"""What the adapters share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import HiddenAttentionError, Lens, looking_through
from ..precision import COMPUTED, run_in


class Adapter:
    """A torch model as a `SequenceModel`; holds the model itself, no copy.

    Args:
        module: the model.
        blocks: its layers in order.

    Attributes:
        position: where the answer is read, counted from the end.
        discrete: whether the readout is logits, else it is an action.
    """

    token_roles: Tensor | None = None
    position = -1
    discrete = True

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module]) -> None:
        self.module: Any = module
        self.blocks = list(blocks)

    def embed(self, batch: Any) -> Tensor:
        """(B, n, d), the continuous inputs."""
        raise NotImplementedError

    def mask(self, batch: Any) -> Tensor | None:
        """(B, n) bool, True for real tokens; None if all are."""
        return None

    def readout(self, state: Tensor) -> Tensor:
        """Logits or actions from states L, (B, d) or (B, n, d)."""
        raise NotImplementedError

    def _final(self, emb: Tensor, mask: Tensor | None) -> Tensor:
        """State L, (B, n, d)."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> str:
        """The name of the dtype of the parameters."""
        own = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        return str(next(own, torch.float32)).removeprefix("torch.")

    def states(
        self,
        emb: Tensor,
        mask: Tensor | None = None,
        layers: Sequence[int] | None = None,
        *,
        position: Tensor | int | None = None,
        raw_last: bool = False,
    ) -> list[Tensor]:
        """States of layers.

        Args:
            emb: (B, n, d).
            mask: (B, n) bool, True for real tokens; all are if None.
            layers: which, from 0, what goes into the first, to L; negative ones count from L; all if None.
            position: keep the state of this token alone: an index, or one for each sequence, (B,).
            raw_last: L is what comes out of the last layer, not yet normed.

        Returns:
            (B, n, d) each, or (B, d) with ``position``.

        Raises:
            ValueError: the model is in train mode; there is no such layer.
        """
        return self.read(emb, mask, self.layer_numbers(layers), position=position, raw_last=raw_last)[0]

    def read(
        self,
        emb: Tensor,
        mask: Tensor | None,
        layers: Sequence[int],
        *,
        position: Tensor | int | None = None,
        raw_last: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """As `states`, with layers from 0 to L, and state L as the readout takes it, in one forward."""
        self.check_ready()
        kept: dict[int, Tensor] = {}
        with self._recording(kept, set(layers), position):
            final = take(self._final(emb, mask), position)
        if not (raw_last and self.blocks):
            kept[self.depth] = final
        if not self.blocks:
            kept[0] = take(emb, position)
        return [kept[layer] for layer in layers], final

    @contextmanager
    def _recording(
        self, kept: dict[int, Tensor], wanted: set[int], position: Tensor | int | None
    ) -> Iterator[None]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            kept[0] = take(args[0] if args else kwargs["hidden_states"], position)

        def after(layer: int, module: nn.Module, args: Any, output: Any) -> None:
            kept[layer] = take(output[0] if isinstance(output, (tuple, list)) else output, position)

        hooks = [
            block.register_forward_hook(partial(after, layer))
            for layer, block in enumerate(self.blocks, 1)
            if layer in wanted
        ]
        if 0 in wanted and self.blocks:
            hooks.append(self.blocks[0].register_forward_pre_hook(before, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def layer_numbers(self, layers: Sequence[int] | None) -> list[int]:
        """Layers from 0 to L, from numbers of which negative ones count from L; all if None."""
        if layers is None:
            return list(range(self.depth + 1))
        found = [layer + self.depth + 1 if layer < 0 else layer for layer in layers]
        if not all(0 <= layer <= self.depth for layer in found):
            raise ValueError(f"layers must be from 0 to {self.depth}, or negative; got {list(layers)}")
        return found

    def roles(self, tokens: int) -> Tensor | None:
        """Of each token of a sequence, (n,); None if all are alike."""
        if self.token_roles is None:
            return None
        return self.token_roles.repeat(math.ceil(tokens / len(self.token_roles)))[:tokens]

    def attentions(self, emb: Tensor, mask: Tensor | None = None) -> list[Tensor] | None:
        """Weights of each attention in the order they are computed, (B, H, queries, keys); None if the model
        neither calls torch's attention nor takes that of transformers."""
        weights: list[Tensor] = []
        try:
            with self.looking(Lens(record=weights.append)):
                self.states(emb, mask, [self.depth])
        except HiddenAttentionError:
            return None
        return weights or None

    @contextmanager
    def looking(self, lens: Lens) -> Iterator[None]:
        """Within it, attention is computed as the lens says."""
        with looking_through(self.module, lens):
            yield

    @contextmanager
    def running_in(self, dtype: str) -> Iterator[None]:
        """Within it, the model computes in this dtype and no gradient reaches its parameters."""
        with run_in(self.module, dtype, self.blocks):
            yield

    def cast(self, emb: Tensor, dtype: str) -> Tensor:
        """Inputs in the dtype that the model computes in."""
        return emb.to(COMPUTED.get(dtype, torch.float32))

    def check_ready(self) -> None:
        """Refuse a model whose outputs are random.

        Raises:
            ValueError: it, or a part of it, is in train mode.
        """
        name = type(self.module).__name__
        if self.module.training:
            raise ValueError(
                f"{name} is in train mode, so dropout makes its states random: call .eval() first"
            )
        for part, layer in self.module.named_modules():
            if layer.training:  # not only of nn.Dropout: attention has dropout without a module of its own
                raise ValueError(f"{part!r} of {name} is in train mode: call .eval() on the whole model")


def take(x: Tensor, position: Tensor | int | None) -> Tensor:
    """(B, n, d) -> (B, d) at a position, the same for all or one for each; all of it if None."""
    if position is None:
        return x
    if isinstance(position, int):
        return x[:, position]
    return x[torch.arange(len(x), device=x.device), position]


def check_adapter(model: Any) -> None:
    """Refuse a model that no adapter was put around.

    Raises:
        TypeError: it is none, and which there are.
    """
    if not isinstance(model, Adapter):
        raise TypeError(
            f"put an adapter around {type(model).__name__} first: HFCausalLM(model, tokenizer), "
            "DecisionTransformerAdapter(model), RADTAdapter(model) or ModuleAdapter(model)"
        )
