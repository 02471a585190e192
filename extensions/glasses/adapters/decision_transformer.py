"""Decision Transformers, of transformers and of TorchRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .base import Adapter
from .protocol import ACTION, RETURN, STATE

# What a batch holds, by the names of TorchRL and of transformers.
NAMES = {
    "observation": ("observation", "states"),
    "action": ("action", "actions"),
    "return_to_go": ("return_to_go", "returns_to_go"),
    "timestep": ("timestep", "timesteps"),
    "mask": ("mask", "attention_mask"),
}


def entry(batch: Any, name: str) -> Any:
    """An entry of a mapping or tensordict by either host's name; None where there is none."""
    for key in NAMES[name]:
        if key in batch.keys():  # noqa: SIM118  a tensordict has no `in` of its own
            return batch[key]
    return None


def needed(batch: Any, name: str) -> Tensor:
    """The same, of an entry that must be there.

    Raises:
        ValueError: it is not.
    """
    value = entry(batch, name)
    if value is None:
        raise ValueError(
            f"a batch needs {' or '.join(map(repr, NAMES[name]))}; it has {', '.join(map(str, batch.keys()))}"
        )
    return value


def sequences(batch: Any, features: Mapping[str, int], dtype: torch.dtype) -> list[Tensor]:
    """Entries of a batch, (B, T, features) each.

    Args:
        batch: a mapping or tensordict.
        features: of each entry, by its name.
        dtype: that they are wanted in.

    Raises:
        ValueError: one is not there, or not of that shape, or they differ in windows or steps.
    """
    found = {name: needed(batch, name) for name in features}
    for name, value in found.items():
        if value.ndim != 3 or value.shape[-1] != features[name]:
            raise ValueError(f"{name} must be (windows, steps, {features[name]}), got {tuple(value.shape)}")
    if len({value.shape[:2] for value in found.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in found.items())
        raise ValueError(f"all must have as many windows and steps, got {shapes}")
    return [value.to(dtype) for value in found.values()]


class PolicyAdapter(Adapter):
    """What the adapters of sequence policies share: steps of T tokens, one of them a return."""

    discrete = False

    def mask(self, batch: Any) -> Tensor | None:
        """(B, n) bool, True for the tokens of real steps; None if all are."""
        mask = entry(batch, "mask")
        if mask is None or bool(mask.bool().all()):
            return None
        assert self.token_roles is not None
        steps = mask.bool().reshape(len(mask), -1)  # (B, T)
        return steps.repeat_interleave(len(self.token_roles), 1)


class DecisionTransformerAdapter(PolicyAdapter):
    """A Decision Transformer as a `SequenceModel`: tokens R_1, s_1, a_1, R_2, ..; actions are read at states.

    Args:
        model: ``DecisionTransformerModel`` of transformers, or ``DTActor`` or ``OnlineDTActor`` of TorchRL,
            in eval mode. A batch is a mapping or tensordict by the host's own names, ``states, actions,
            returns_to_go, timesteps[, attention_mask]`` or ``observation, action, return_to_go``.

    Raises:
        TypeError: it is something else.
    """

    position = -2  # the state of the last step, whose action comes behind it

    def __init__(self, model: nn.Module) -> None:
        self.of_transformers = hasattr(model, "encoder") and hasattr(model, "predict_action")
        if self.of_transformers:
            self.inputs: Any = model
            self.backbone: Any = model.encoder
        elif hasattr(getattr(model, "transformer", None), "embed_ln"):
            self.inputs = model.transformer
            self.backbone = self.inputs.transformer
        else:
            raise TypeError(
                "DecisionTransformerAdapter takes DecisionTransformerModel of transformers, DTActor or "
                f"OnlineDTActor of TorchRL; got {type(model).__name__}"
            )
        super().__init__(model, self.backbone.h)
        self.token_roles = torch.tensor([RETURN, STATE, ACTION])

    def embed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, 3 T, d), normed and with times added, as the decoder takes them."""
        layers = {
            "return_to_go": self.inputs.embed_return,
            "observation": self.inputs.embed_state,
            "action": self.inputs.embed_action,
        }
        features = {name: layer.in_features for name, layer in layers.items()}
        given = sequences(batch, features, layers["observation"].weight.dtype)
        parts = [layer(values) for layer, values in zip(layers.values(), given, strict=True)]
        if self.of_transformers:
            time = self.inputs.embed_timestep(needed(batch, "timestep"))
            parts = [part + time for part in parts]
        return self.inputs.embed_ln(torch.stack(parts, -2).flatten(-3, -2))

    def readout(self, state: Tensor) -> Tensor:
        """Actions of states; the means of ``OnlineDTActor``."""
        if self.of_transformers:
            return self.module.predict_action(state)
        layer = getattr(self.module, "action_layer", None)
        return self.module.action_layer_mean(state) if layer is None else layer(state)

    def _final(self, emb: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None and self.of_transformers:
            mask = torch.ones(emb.shape[:2], dtype=torch.bool, device=emb.device)
        places: dict[str, Tensor] = {} if mask is None else {"attention_mask": mask.long()}
        if self.of_transformers:
            # Times are in the inputs; its own positions are all 0. Without a mask, transformers would take
            # each 0 for the beginning of a sequence of its own.
            places["position_ids"] = torch.zeros(emb.shape[:2], dtype=torch.long, device=emb.device)
        return self.backbone(inputs_embeds=emb, use_cache=False, **places).last_hidden_state
