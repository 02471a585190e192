"""The action-value network that is asked for a few actions at a time."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchrl.data import TensorSpec

from ...stochmax.actions import ActionCodec, IdCodec
from ...stochmax.heads import available_bytes, check_memory, choose_head, make_head
from .specs import count_actions


class StochQNetwork(nn.Module):
    """A trunk, which sees the state, and a head, which is asked for the values of some actions.

    Args:
        trunk: any module from what the actor reads (one tensor an ``in_key``) to features (\\*B, width), such
            as :class:`torchrl.modules.MLP`; None hands the observation itself to the head.
        actions: their number n, or a spec of whole numbers, or a codec that says what their ids stand for
            (``MixedRadix``, ``BoxBins``, ``ActionFeatures``), if values should generalise over actions.
        width: features that the trunk puts out; by default the ``out_features`` of its last linear layer.
        head: ``"linear"``, ``"row"``, ``"low_rank"``, ``"feature"``, or ``"auto"``, which goes by the codec
            and n (see :func:`extensions.stochmax.choose_head`).
        head_kwargs: of the head: ``dueling`` (row), ``rank`` (low_rank), ``hidden`` (feature).
        device: where the network will be trained; its memory is what must suffice.

    Raises:
        MemoryError: the head would not fit; says which one does, before anything is allocated.
        ValueError, TypeError: an unknown head or argument of it; a width that cannot be told; a one-hot spec.

    Examples:
        >>> trunk = MLP(in_features=4, out_features=64, num_cells=[64], activate_last_layer=True)
        >>> network = StochQNetwork(trunk, 1_000_000)
        >>> network(torch.randn(32, 4), torch.randint(1_000_000, (32, 40))).shape
        torch.Size([32, 40])
    """

    def __init__(
        self,
        trunk: nn.Module | None,
        actions: int | ActionCodec | TensorSpec,
        *,
        width: int | None = None,
        head: str = "auto",
        head_kwargs: dict[str, Any] | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.trunk = nn.Identity() if trunk is None else trunk
        if isinstance(actions, TensorSpec):
            actions = count_actions(actions, masked=True)
        self.codec = actions if isinstance(actions, ActionCodec) else IdCodec(int(actions))
        self.width = width = _width(self.trunk) if width is None else width
        name, kwargs = choose_head(self.codec) if head == "auto" else head, head_kwargs or {}
        check_memory(name, width, self.codec, available_bytes(device or "cpu"), **kwargs)
        self.head: Any = make_head(name, width, self.codec, **kwargs)
        if device is not None:
            self.to(device)

    @property
    def inputs(self) -> int | None:
        """Numbers in what the trunk reads, or None where its first layer does not tell."""
        first = next((m for m in self.trunk.modules() if list(m.parameters(recurse=False))), None)
        if first is None:
            return self.width
        return getattr(first, "in_features", None) or None  # 0 before a lazy layer has seen anything

    def forward(self, *observation_and_ids: Tensor) -> Tensor:
        """Values of ``ids``.

        Args:
            observation_and_ids: what the trunk takes, (\\*B, ...) each, and then the ids, (\\*B, C) int64, or
                (C,) for all states alike.

        Returns:
            Tensor: (\\*B, C).
        """
        *observation, ids = observation_and_ids
        states = self.trunk(*observation)  # (*B, width)
        batch = states.shape[:-1]
        ids = ids if ids.ndim == 1 else ids.reshape(-1, ids.shape[-1])
        return self.head(states.reshape(-1, states.shape[-1]), ids).reshape(*batch, -1)


def _width(trunk: nn.Module) -> int:
    layers = [m for m in trunk.modules() if isinstance(getattr(m, "out_features", None), int)]
    if not layers:
        raise ValueError(
            "The width of the trunk's features cannot be told from its layers: give StochQNetwork(width=...)."
        )
    return layers[-1].out_features  # type: ignore[return-value]
