"""Acting on windows, as TorchRL's wrapper of the Decision Transformer does."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import dispatch
from torchrl.modules import DecisionTransformerInferenceWrapper

MASK, TIMESTEP = "mask", "timestep"


class RADTInferenceWrapper(DecisionTransformerInferenceWrapper):
    """:class:`torchrl.modules.DecisionTransformerInferenceWrapper` for actors that take a mask as well.

    Its arguments, keys and results; a policy without the in-key "mask" is given what TorchRL's wrapper gives
    it, but for ``inference_context=1``, where that leaves all past actions but one in sight. A policy with it
    is told which steps are in the context: the last ``inference_context``, and of these the real ones, if the
    tensordict has a mask of its own. A policy with the in-key "timestep" needs that entry.

    For rollouts :class:`RADTPolicy` is faster: it needs no windows in the environment, and has a cache.
    """

    @property
    def in_keys(self) -> list[NestedKey]:
        """Observation, action and return-to-go, and the time if the policy takes it."""
        return super().in_keys + [key for key in self.td_module.in_keys if key == TIMESTEP]

    def mask_context(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Hide what lies before the context, and shift actions: the last one is yet to be chosen."""
        keys = (self.observation_key, self.action_key, self.return_to_go_key)
        observation, action, return_to_go = (tensordict.get(key).clone() for key in keys)
        if action.ndim != observation.ndim:
            raise ValueError(
                f"Actions {tuple(action.shape)} have no dimension of features beside observations "
                f"{tuple(observation.shape)}. For actions as indices use RADTPolicy, or give them one-hot."
            )
        self._check_tensor_dims(return_to_go, observation, action)
        steps, context = observation.shape[-2], self.inference_context
        old = max(steps - context, 0)
        observation[..., :old, :] = 0
        return_to_go[..., :old, :] = 0
        # the window's actions are those of the steps before its observations
        action = torch.cat([action[..., 1:, :], torch.zeros_like(action[..., :1, :])], dim=-2)
        action[..., :old, :] = 0
        for key, value in zip(keys, (observation, action, return_to_go), strict=True):
            tensordict.set(key, value)
        if MASK in self.td_module.in_keys:
            near = torch.arange(steps, device=observation.device) >= old
            given = tensordict.get(MASK, None)
            real = near.expand(observation.shape[:-1])
            tensordict.set(MASK, real if given is None else real & given.reshape(real.shape))
        return tensordict

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The next action, and the last return-to-go, in a shallow copy of the tensordict."""
        out = super().forward(tensordict)
        return out if MASK in tensordict else out.exclude(MASK)
