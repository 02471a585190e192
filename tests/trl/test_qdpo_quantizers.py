"""Scales, codes and their gradients against plain loops in float64, and laws that hold for any weight."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions.trl.qdpo.quantizers import (
    CLIPS,
    SCALE_DTYPES,
    WeightScheme,
    choose_scales,
    decode,
    encode,
    fake_quantize,
    on_grid,
)

SCHEMES = [
    WeightScheme(bits, group, symmetric, clip, dtype)
    for bits, group, symmetric, clip, dtype in (
        (2, None, True, "absmax", "bfloat16"),
        (3, None, True, "mse", "bfloat16"),
        (4, 4, True, "absmax", "float16"),
        (5, 4, True, "mse", "float32"),
        (8, None, True, "absmax", "float32"),
        (2, 4, False, "absmax", "bfloat16"),
        (3, None, False, "mse", "float16"),
        (4, 8, False, "absmax", "bfloat16"),
        (6, None, False, "mse", "bfloat16"),
        (8, 4, False, "absmax", "float32"),
    )
]


def weight(rows=5, inputs=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    values[0, 3] = 9.0  # an outlier
    values[1] = 0.0
    values[2] = values[2].abs() + 2.0  # of one sign, far from zero
    return values


def rounded(x):
    """Half to even, as torch rounds."""
    return float(round(x))


def kept(x, scheme):
    """``x`` rounded up to the type scales are kept in."""
    dtype = SCALE_DTYPES[scheme.scale_dtype]
    near = torch.tensor(x, dtype=torch.float64).to(dtype)
    if near.double() < x:
        near = torch.nextafter(near, torch.tensor(math.inf, dtype=dtype))
    return float(near.double()) or 1.0


def one_group(values, share, scheme):
    """Scale and zero point of a group of weights, clipped at a share of its outermost weight."""
    low_code, high_code = -(2 ** (scheme.bits - 1)), 2 ** (scheme.bits - 1) - 1
    if scheme.symmetric:
        return kept(2 * share * max(abs(w) for w in values) / (high_code - low_code), scheme), 0
    low, high = share * min(0.0, *values), share * max(0.0, *values)
    scale = kept((high - low) / (high_code - low_code), scheme)
    return scale, min(max(low_code - rounded(low / scale), low_code), high_code)


def on_it(w, scale, zero, scheme):
    """Code and value of one weight."""
    code = rounded(w / scale) + zero
    code = min(max(code, -(2 ** (scheme.bits - 1))), 2 ** (scheme.bits - 1) - 1)
    return code, (code - zero) * scale


def oracle(values, scheme):
    """Scale, zero point, codes and values of each group of each row."""
    size = scheme.group_size or values.shape[1]
    found = []
    for row in values.tolist():
        for start in range(0, len(row), size):
            group = row[start : start + size]
            best = None
            for share in CLIPS if scheme.clip == "mse" else [1.0]:
                scale, zero = one_group(group, share, scheme)
                pairs = [on_it(w, scale, zero, scheme) for w in group]
                error = sum((value - w) ** 2 for w, (_, value) in zip(group, pairs, strict=True))
                if best is None or error < best[0]:
                    best = (error, scale, zero, *zip(*pairs, strict=True))
            found.append(best[1:])
    return found


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_by_loops(scheme):
    values = weight()
    scale, zero_point = choose_scales(values, scheme)
    codes = encode(values, scale, zero_point, scheme)
    decoded = decode(codes, scale, zero_point, scheme)
    groups = 16 // (scheme.group_size or 16)
    assert scale.shape == (5, groups)
    assert scale.dtype == decoded.dtype == torch.float64
    assert codes.dtype == torch.int8
    assert (zero_point is None) == scheme.symmetric
    wanted = oracle(values, scheme)
    assert scale.flatten().tolist() == [one[0] for one in wanted]
    if zero_point is not None:
        assert zero_point.dtype == torch.int8
        assert zero_point.flatten().tolist() == [one[1] for one in wanted]
    assert codes.flatten().tolist() == [code for one in wanted for code in one[2]]
    assert decoded.flatten().tolist() == [value for one in wanted for value in one[3]]
    assert torch.equal(fake_quantize(values, scale, zero_point, scheme), decoded)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_best_clip_is_no_worse(bits, symmetric):
    values = weight()
    errors = {}
    for clip in ("absmax", "mse"):
        scheme = WeightScheme(bits, 4, symmetric, clip)
        scale, zero = choose_scales(values, scheme)
        off = decode(encode(values, scale, zero, scheme), scale, zero, scheme) - values
        errors[clip] = off.square().unflatten(-1, (-1, 4)).sum(-1)
    assert (errors["mse"] <= errors["absmax"]).all()
    if bits < 8:
        assert errors["mse"].sum() < errors["absmax"].sum()


def schemes():
    return st.builds(
        WeightScheme,
        bits=st.integers(2, 8),
        group_size=st.sampled_from([None, 2, 4]),
        symmetric=st.booleans(),
        clip=st.sampled_from(["absmax", "mse"]),
        scale_dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    )


def weights():
    value = st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
    return st.lists(st.lists(value, min_size=8, max_size=8), min_size=1, max_size=3).map(torch.tensor)


@settings(max_examples=80, deadline=None)
@given(values=weights(), scheme=schemes())
def test_laws(values, scheme):
    """Codes are in range; inside it a weight moves by half a step; on the grid it stays; zero is on it."""
    scale, zero = choose_scales(values, scheme)
    codes = encode(values, scale, zero, scheme)
    assert (scale > 0).all()
    assert torch.equal(scale, scale.to(SCALE_DTYPES[scheme.scale_dtype]).float())
    assert ((codes >= scheme.lowest) & (codes <= scheme.highest)).all()
    decoded = decode(codes, scale, zero, scheme)
    assert torch.equal(encode(decoded, scale, zero, scheme), codes)
    assert torch.equal(fake_quantize(decoded, scale, zero, scheme), decoded)
    size = scheme.group_size or 8
    steps = scale.repeat_interleave(size, 1)
    shift = 0 if zero is None else zero.repeat_interleave(size, 1).float()
    inside = (codes > scheme.lowest) & (codes < scheme.highest)
    assert ((decoded - values).abs() <= 0.5001 * steps)[inside].all()
    if scheme.clip == "absmax":  # nothing is clipped by more than the half step at the ends of the range
        assert ((decoded - values).abs() <= 1.001 * steps).all()
    assert ((values != 0) | (decoded == 0)).all()
    assert ((decoded / steps + shift - codes).abs() < 1e-3).all()


@settings(max_examples=40, deadline=None)
@given(values=weights(), scheme=schemes())
def test_straight_through(values, scheme):
    """The gradient is 1 where a weight is inside the range, ends and a half step included, else 0."""
    scale, zero = choose_scales(values, scheme)
    values = values * torch.linspace(0.5, 3.0, 8)  # some beyond the range
    values.requires_grad_()
    upstream = torch.arange(values.numel()).view_as(values) + 1.0
    fake_quantize(values, scale, zero, scheme).backward(upstream)
    size = scheme.group_size or 8
    steps = scale.repeat_interleave(size, 1)
    shift = 0 if zero is None else zero.repeat_interleave(size, 1).float()
    position = values.detach() / steps + shift
    inside = (position >= scheme.lowest - 0.5) & (position <= scheme.highest + 0.5)
    near = ((position - scheme.lowest + 0.5).abs() < 1e-4) | ((position - scheme.highest - 0.5).abs() < 1e-4)
    assert torch.equal(values.grad[~near], torch.where(inside, upstream, 0)[~near])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_gradient_of_scales(scheme):
    """Away from jumps: d Q/ds = c - z by differences, less w/s inside (Esser et al. 2020, Eq. 3)."""
    values = weight(3, 8, seed=1) * torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    scale, zero = choose_scales(weight(3, 8, seed=1), scheme)
    scale = scale.clone().requires_grad_()
    upstream = torch.randn(3, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    fake_quantize(values, scale, zero, scheme).backward(upstream)
    step = 1e-7
    size = scheme.group_size or 8
    codes = encode(values, scale.detach(), zero, scheme)
    above, below = (
        decode(codes, scale.detach() + sign * step, zero, scheme) for sign in (1, -1)
    )  # between its jumps Q is linear in s
    slope = (above - below) / (2 * step)
    steps = scale.detach().repeat_interleave(size, 1)
    shift = 0 if zero is None else zero.repeat_interleave(size, 1).double()
    position = values / steps + shift
    inside = (position >= scheme.lowest - 0.5) & (position <= scheme.highest + 0.5)
    assert inside.any()
    wanted = upstream * (slope - torch.where(inside, values / steps, 0))
    torch.testing.assert_close(scale.grad, wanted.unflatten(-1, (-1, size)).sum(-1), rtol=1e-6, atol=1e-6)


def test_no_gradient_that_is_not_wanted():
    values = weight().requires_grad_()
    scheme = WeightScheme()
    scale, zero = choose_scales(values.detach(), scheme)
    fake_quantize(values, scale, zero, scheme).sum().backward()
    assert scale.grad is None
    fixed = scale.clone().requires_grad_()
    fake_quantize(values.detach(), fixed, zero, scheme).sum().backward()
    assert fixed.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_in_half_precision_is_rounded_as_if_in_full(dtype):
    values = weight().to(dtype)
    for scheme in SCHEMES:
        half, full = choose_scales(values, scheme), choose_scales(values.float(), scheme)
        assert half[0].dtype == torch.float32
        assert torch.equal(half[0], full[0])
        one, other = (encode(x, *full, scheme) for x in (values, values.float()))
        assert torch.equal(one, other)
        assert fake_quantize(values, *full, scheme).dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 1e4), st.sampled_from(list(SCALE_DTYPES)))
def test_scales_are_rounded_up_to_the_next(value, name):
    scheme = WeightScheme(scale_dtype=name)
    scale = torch.tensor([value], dtype=torch.float32)
    found = on_grid(scale, scheme)
    kept_in = SCALE_DTYPES[name]
    assert torch.equal(found, found.to(kept_in).float())
    assert (found >= scale).all()
    below = torch.nextafter(found.to(kept_in), torch.tensor([0.0], dtype=kept_in)).float()
    assert (below < scale).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bits": 1}, "bits must be an integer from 2 to 8, not 1"),
        ({"bits": "4"}, "not '4'"),
        ({"bits": True}, "not True"),
        ({"group_size": -1}, "group_size must be positive"),
        ({"clip": None}, "clip must be"),
        ({"scale_dtype": "half"}, "scale_dtype must be one of"),
    ],
)
def test_schemes_that_cannot_be(values, said):
    with pytest.raises(ValueError, match=said):
        WeightScheme(**values)
