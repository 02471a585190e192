"""A distribution over n actions that learns: one of the values of each digit of an id, given the state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .actions import ActionCodec, MixedRadix

#: digits with more values than this are spelled in several of fewer
LARGEST_DIGIT = 64
#: the largest share of a digit's draws that are uniform: most are to be what was learned
MOST_UNIFORM = 0.25
#: logit of a value that a digit does not have; finite, since 0 * -inf is no number
NEVER = -1e9


class Spelling(nn.Module):
    """Ids as D digits of at most 64 values each, least significant first.

    The digits are the codec's. One with more values, or a plain id, is spelled in the fewest digits of equal
    base: 10^6 plain ids are (32, 32, 32, 31). Where the bases multiply to more than there are values, what
    lies beyond wraps around to ids that have another spelling too.

    Args:
        codec: the actions.

    Attributes:
        sizes: (D,) values of each digit.
        widest: W, the most values that a digit has.
    """

    sizes: Tensor
    values: Tensor  # (D,) values of the codec's digit that this one is a part of
    place: Tensor  # (D,) value of a one in the codec's digit
    part: Tensor  # (D,) value of a one in this digit, within the codec's
    worth: Tensor  # (D, 1) value of a one in this digit

    def __init__(self, codec: ActionCodec) -> None:
        super().__init__()
        self.n = codec.n
        whole = codec.nvec.tolist() if isinstance(codec, MixedRadix) else [codec.n]
        rows, place = [], 1
        for m in whole:
            part = 1
            for size in split_digit(m):
                rows.append((size, m, place, part))
                part *= size
            place *= m
        table = torch.tensor(rows)  # (D, 4)
        self.widest = int(table[:, 0].max())
        for name, column in zip(("sizes", "values", "place", "part"), table.T, strict=True):
            self.register_buffer(name, column.contiguous(), persistent=False)
        self.register_buffer("worth", (self.place * self.part).unsqueeze(1), persistent=False)

    def digits(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., D) int64."""
        whole = ids.unsqueeze(-1).div(self.place, rounding_mode="floor") % self.values
        return whole.div(self.part, rounding_mode="floor") % self.sizes

    def ids(self, digits: Tensor) -> Tensor:
        """(..., D, k) int64 -> (..., k) int64 in 0..n-1."""
        return (digits * self.worth).sum(-2) % self.n


def split_digit(m: int) -> list[int]:
    """The values of the digits that spell 0..m-1: their product is at least m, and each at most 64."""
    if m <= LARGEST_DIGIT:
        return [m]
    count = 2
    while LARGEST_DIGIT**count < m:
        count += 1
    base = 2
    while base**count < m:
        base += 1
    below = base ** (count - 1)
    return [base] * (count - 1) + [-(-m // below)]


class DigitPolicy(nn.Module):
    r"""p(a | s) as a product over the digits of a, :math:`\prod_j p_j(a_j \mid s)`, that learns by maximum
    likelihood.

    A network with two hidden layers puts out the logits of all digits. At first every p_j is uniform. Any
    single id, for each state another, can have all the mass. Parameters and work are those of at most 64
    outputs a digit, whatever n.

    It trains itself: gradient and Adam are written out, on buffers. So it goes where no autograd can, into
    the compiled or captured update of a host; a host's optimizer, clipping and target network do not see it;
    and what it has learned, Adam's moments included, is in its state dict.

    Args:
        width: numbers in an observation.
        codec: the actions.
        hidden: width of the hidden layers.
        lr: Adam's learning rate.
        entropy: weight of the entropy in what is maximised.
        explore: how many digits of a drawn id are drawn uniformly instead, on average; at most a quarter of
            them.
    """

    BETAS, EPS = (0.9, 0.999), 1e-8

    blank: Tensor  # (D, W), 0 where a digit has the value, else NEVER
    uniform: Tensor  # (D, W), 1 / size where a digit has the value, else 0
    weights: Tensor  # (P,), layer by layer: weight, bias
    mean: Tensor  # (P,), of the gradient
    square: Tensor  # (P,), mean of the gradient's square
    steps: Tensor  # (), float32

    def __init__(
        self, width: int, codec: ActionCodec, hidden: int, lr: float, entropy: float, explore: float
    ) -> None:
        super().__init__()
        self.spelling = Spelling(codec)
        sizes, widest = self.spelling.sizes, self.spelling.widest
        self.width, self.lr, self.entropy = width, lr, entropy
        self.share = min(MOST_UNIFORM, explore / len(sizes))  # of a digit's draws that are uniform
        self.shapes = [(hidden, width), (hidden, hidden), (len(sizes) * widest, hidden)]
        has = torch.arange(widest) < sizes.unsqueeze(1)  # (D, W)
        self.register_buffer("blank", torch.where(has, 0.0, NEVER), persistent=False)
        self.register_buffer("uniform", has / sizes.unsqueeze(1), persistent=False)
        layers = [nn.Linear(inputs, outputs) for outputs, inputs in self.shapes]
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        flat = torch.cat([p.detach().reshape(-1) for layer in layers for p in (layer.weight, layer.bias)])
        self.register_buffer("weights", flat)
        self.register_buffer("mean", torch.zeros_like(flat))
        self.register_buffer("square", torch.zeros_like(flat))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Observations (B, width) -> log p_j of each value of each digit (B, D, W)."""
        return self._forward(x)[0]

    def log_prob(self, x: Tensor, ids: Tensor) -> Tensor:
        """log p(a | s) of one id (B,) for each observation (B, width): (B,).

        Of its spelling in ``Spelling.digits``: an id that wraps around has a second one, of which this does
        not count the probability.
        """
        digits = self.spelling.digits(ids).unsqueeze(-1)  # (B, D, 1)
        return self(x).gather(2, digits).sum((1, 2))

    @torch.no_grad()
    def propose(self, x: Tensor, k: int) -> Tensor:
        """The likeliest id and k - 1 drawn ones for each observation: (B, k) int64.

        Each digit is drawn from ``(1 - e) p_j + e / size``, with e = explore / D or a quarter.
        """
        p = self(x).exp()  # (B, D, W)
        likeliest = p.argmax(-1, keepdim=True)
        below = p.lerp_(self.uniform, self.share).cumsum_(-1)
        u = torch.rand(len(x), len(self.blank), k - 1, dtype=p.dtype, device=x.device)  # (B, D, k - 1)
        drawn = torch.searchsorted(below, u, right=True)
        drawn = torch.minimum(drawn, self.spelling.sizes.unsqueeze(1) - 1)  # a sum may round to less than 1
        return self.spelling.ids(torch.cat([likeliest, drawn], -1))

    @torch.no_grad()
    def learn(self, x: Tensor, ids: Tensor) -> None:
        """One step of Adam towards the ids (B,) that were best for observations (B, width)."""
        gradient = self.gradient(x, ids)
        self.steps.add_(1)
        self.mean.lerp_(gradient, 1 - self.BETAS[0])
        self.square.lerp_(gradient.square_(), 1 - self.BETAS[1])
        of_mean, of_square = (1 - beta**self.steps for beta in self.BETAS)  # bias corrections
        scale = (self.square / of_square).sqrt_().add_(self.EPS).mul_(of_mean)
        self.weights.addcdiv_(self.mean, scale, value=-self.lr)

    @torch.no_grad()
    def gradient(self, x: Tensor, ids: Tensor) -> Tensor:
        r"""The gradient of :math:`-\frac{1}{B} \sum_s \big( \log p(a_s \mid s) + \lambda \sum_j H_j(s)
        \big)`, with :math:`\lambda` the weight of the entropy, in the order of ``weights``: (P,).
        """
        log_p, inputs, layers = self._forward(x)
        p = log_p.exp()
        # The entropy H_j has by logit i the derivative -p_i (log p_i + H_j).
        by_logits = (log_p - (p * log_p).sum(-1, keepdim=True)).mul_(self.entropy).add_(1.0).mul_(p)
        digits = self.spelling.digits(ids).unsqueeze(-1)  # (B, D, 1)
        by_logits.scatter_add_(2, digits, by_logits.new_full((1, 1, 1), -1.0).expand_as(digits))
        error = by_logits.flatten(1).div_(len(x))  # (B, D * W)
        parts = []
        for (weight, _), given in zip(reversed(layers), reversed(inputs), strict=True):
            parts += [error.sum(0), (error.T @ given).flatten()]
            if given is not x:
                error = (error @ weight).mul_(given > 0)
        return torch.cat(parts[::-1])

    def _forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, Tensor]]]:
        """log p (B, D, W), what each layer was given, and the layers' weights and biases."""
        layers = self._layers()
        inputs, h = [], x
        for weight, bias in layers[:-1]:
            inputs.append(h)
            h = F.linear(h, weight, bias).relu_()
        inputs.append(h)
        logits = F.linear(h, *layers[-1]).view(len(x), *self.blank.shape)
        return logits.add_(self.blank).log_softmax(-1), inputs, layers

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer, views of ``weights``."""
        sizes = [size for outputs, inputs in self.shapes for size in (outputs * inputs, outputs)]
        flat = self.weights.split(sizes)
        return [(w.view(shape), b) for w, b, shape in zip(flat[::2], flat[1::2], self.shapes, strict=True)]
