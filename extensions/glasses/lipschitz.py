"""A bound of the Jacobian with frozen attention, with all constants of the model in it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import HFCausalLM
from .attention import Lens
from .batches import place_of
from .paths import Bound

MODELS = ("llama", "mistral", "qwen2")
PROJECTIONS = ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@torch.no_grad()
def lipschitz_bound(model: HFCausalLM, batch: Any, *, target: int = -1) -> Bound:
    """Upper bound of the spectral norm of d y_target / d v_i with frozen attention (theorem 5.1, with its
    constants).

    For each layer, with constants of the very tokens that are visited::

        M[j, i] = (1 + mlp_j) * (sum_h a^h[j, i] |W_O^h W_V^h| norm1_i + [i = j])
        norm_i  = max |w| / rms_i
        mlp_j   = |W_down| (max |act'(g) u| |W_gate| + max |act(g)| |W_up|) norm2_j

    The row of the product for the target, times the slope of the final norm there, bounds the Jacobian. Bars
    are spectral norms of matrices and sizes of numbers; ``norm1`` and ``norm2`` are slopes of RMSNorm in
    front of attention and of the MLP, g and u what its two inner matrices make of token j.

    Args:
        model: whose layers are Llama's: RMSNorm, attention, RMSNorm and a gated MLP, as in Llama, Mistral and
            Qwen 2, with plain ``nn.Linear`` in them.
        batch: token ids or a tokenizer's output, without padding.
        target: the token whose output is taken.

    Returns:
        The bound of each token, for `bound_check`.

    Raises:
        TypeError: other layers; matrices that are adapted (LoRA) or quantized, whose ``weight`` is not all
            that they do.
        ValueError: padding; there is no such token.
    """
    if getattr(model.module.config, "model_type", None) not in MODELS:
        raise TypeError(
            f"lipschitz_bound knows the layers of {', '.join(MODELS)}; got {type(model.module).__name__}"
        )
    if model.mask(batch) is not None:
        raise ValueError("lipschitz_bound takes sequences without padding")
    _check_plain(model)
    read: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: Any) -> None:
        read[module] = args[0]

    blocks: list[Any] = list(model.blocks)
    final_norm = model.backbone.norm
    weights: list[Tensor] = []
    with ExitStack() as stack:
        norms = [norm for block in blocks for norm in (block.input_layernorm, block.post_attention_layernorm)]
        for module in (*norms, *(block.mlp for block in blocks), final_norm):
            stack.callback(module.register_forward_pre_hook(keep).remove)
        stack.enter_context(model.looking(Lens(frozen=True, record=weights.append)))
        emb = model.embed(batch)
        model.states(emb, None, [model.depth])

    row = torch.zeros(emb.shape[:2], dtype=torch.float64, device=emb.device)
    place = place_of(target, emb.shape[1], None)
    row[:, place] = 1
    row = row * _slope_of_norm(final_norm, read[final_norm])
    for block, a in zip(reversed(blocks), reversed(weights), strict=True):
        after, before = block.post_attention_layernorm, block.input_layernorm
        row = row * (1 + _slope_of_mlp(block.mlp, read[block.mlp]) * _slope_of_norm(after, read[after]))
        heads = _head_norms(block.self_attn, a.shape[1])
        through = torch.einsum("bj,bhji,h->bi", row, a.double(), heads)
        row = through * _slope_of_norm(before, read[before]) + row
    return Bound(row, torch.as_tensor(place).expand(len(row)).clone(), model.depth)


def _check_plain(model: HFCausalLM) -> None:
    for number, block in enumerate(model.blocks):
        for name in PROJECTIONS:
            layer = block.get_submodule(name)
            if type(layer) is not nn.Linear:
                kind = f"{type(layer).__module__}.{type(layer).__name__}"
                raise TypeError(
                    f"lipschitz_bound reads the weights of plain nn.Linear, and {name} of layer {number} is "
                    f"{kind}: merge adapters (merge_and_unload), or load the model without quantization"
                )


def _slope_of_norm(norm: Any, x: Tensor) -> Tensor:
    """max |w| / rms of each token, (B, n)."""
    rms = (x.double().square().mean(-1) + norm.variance_epsilon).sqrt()
    return norm.weight.double().abs().max() / rms


def _slope_of_mlp(mlp: Any, x: Tensor) -> Tensor:
    """Bound of the derivative of W_down (act(W_gate x) * W_up x) at each token, (B, n)."""
    gate, up, down = (_norm(layer.weight) for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    with torch.enable_grad():
        g = mlp.gate_proj(x).detach().requires_grad_()
        activated = mlp.act_fn(g)
        (slope,) = torch.autograd.grad(activated.sum(), g)
    u = mlp.up_proj(x)
    through_gate, through_up = (part.double().abs().amax(-1) for part in (slope * u, activated.detach()))
    return down * (through_gate * gate + through_up * up)


def _head_norms(attention: Any, heads: int) -> Tensor:
    """Spectral norms of W_O^h W_V^h, (H,)."""
    width = attention.head_dim
    found = []
    for h in range(heads):
        shared = h // (heads // (attention.v_proj.out_features // width))
        o = attention.o_proj.weight[:, h * width : (h + 1) * width].double()  # (d, head)
        v = attention.v_proj.weight[shared * width : (shared + 1) * width].double()  # (head, d)
        # the norm of o v is that of the small triangles of their QR decompositions
        found.append(_norm(torch.linalg.qr(o).R @ torch.linalg.qr(v.T).R.T))
    return torch.stack(found)


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix.double(), 2)
