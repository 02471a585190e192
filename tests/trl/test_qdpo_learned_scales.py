"""Scales that are trained alone: their gradient, the grid they are exported on, and all that stays frozen."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from extensions.trl.qdpo.layers import quantize_model, quantized_layers  # noqa: E402
from extensions.trl.qdpo.learned_scales import train_scales_only  # noqa: E402
from extensions.trl.qdpo.quantizers import SCALE_DTYPES, WeightScheme, decode, encode, nearest_on_grid  # noqa: E402

IDS = torch.tensor([[3, 8, 30, 41, 6, 11], [5, 9, 7, 20, 2, 1]])
SCHEMES = [
    WeightScheme(bits=2),
    WeightScheme(bits=4, clip="mse"),
    WeightScheme(bits=3, group_size=4, symmetric=False, scale_dtype="float16"),
    WeightScheme(bits=8, scale_dtype="float32"),
]


def policy(tiny, scheme=SCHEMES[0], dtype=torch.float32):
    model = tiny.llama(layers=2).to(dtype)
    quantize_model(model, scheme)
    return model


def first(model):
    return next(iter(quantized_layers(model).values()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_gradient_by_finite_differences(tiny, scheme):
    """
    Between its jumps the weight is (c - z) s, so differences give c - z. Learned step sizes add what the
    straight-through estimator makes of dc/ds where nothing is clipped, s (-w / s^2) = -w / s.
    """
    model = policy(tiny, scheme, torch.float64)
    layer = first(model)
    train_scales_only(model)
    latent, zero_point = layer.latent.detach(), layer.weight_zero_point
    layer.weight_scale.data *= 1.013  # the outermost weight is half a step from the outermost code: a jump
    scale = layer.scale.detach()
    upstream = torch.randn(latent.shape, dtype=torch.float64)
    (layer.weight * upstream).sum().backward()

    def total(scale):  # (O, G), with codes made of this very scale
        codes = encode(latent, scale, zero_point, scheme)
        return (
            (decode(codes, scale, zero_point, scheme) * upstream).unflatten(1, (scale.shape[1], -1)).sum(-1)
        )

    step = scale * 1e-7
    codes = [encode(latent, s, zero_point, scheme) for s in (scale - step, scale, scale + step)]
    unmoved = (codes[0] == codes[1]) & (codes[1] == codes[2])
    unmoved = unmoved.unflatten(1, (scale.shape[1], -1)).all(-1)  # (O, G): no code jumps in between
    assert unmoved.double().mean() > 0.9
    difference = (total(scale + step) - total(scale - step)) / (2 * step)

    shift = 0 if zero_point is None else zero_point[..., None]
    groups = latent.unflatten(1, (scale.shape[1], -1)) / scale[..., None]
    inside = (groups + shift > scheme.lowest - 0.5) & (groups + shift < scheme.highest + 0.5)
    passed = (torch.where(inside, groups, 0) * upstream.unflatten(1, (scale.shape[1], -1))).sum(-1)
    torch.testing.assert_close(
        layer.weight_scale.grad[unmoved], (difference - passed)[unmoved], rtol=1e-5, atol=1e-6
    )


def test_the_gradient_of_three_weights_by_hand():
    """bits=3, s=0.5: 0.6 is code 1 (1.2), -1.1 is -2 (-2.2), and 9 is clipped to 3."""
    layer = torch.nn.Linear(3, 1, bias=False)
    model = torch.nn.Sequential(layer)
    quantize_model(model, WeightScheme(bits=3))
    layer.latent.data = torch.tensor([[0.6, -1.1, 9.0]])
    layer.weight_scale.fill_(0.5)
    train_scales_only(model)
    assert layer.weight.tolist() == [[0.5, -1.0, 1.5]]
    layer.weight.sum().backward()
    assert layer.weight_scale.grad.item() == pytest.approx((1 - 1.2) + (-2 + 2.2) + 3)


@pytest.mark.parametrize("kept", list(SCALE_DTYPES))
def test_scales_are_positive_and_on_the_grid(kept):
    scheme = WeightScheme(scale_dtype=kept)
    scale = torch.tensor([[0.0123456789], [0.0], [-1.0], [3.0]], requires_grad=True)
    used = nearest_on_grid(scale, scheme)
    assert used.dtype == torch.float32
    assert torch.equal(used, used.to(SCALE_DTYPES[kept]).float())
    assert (used > 0).all()
    assert used[3] == 3
    assert used[0].item() == torch.tensor(0.0123456789).to(SCALE_DTYPES[kept]).item()
    (used * torch.arange(4.0)[:, None]).sum().backward()
    assert scale.grad.flatten().tolist() == [0, 1, 2, 3]  # straight through, also where it was not positive


def test_a_scale_below_zero_comes_back(tiny):
    model = policy(tiny)
    target = first(model).weight.detach().clone()
    was = first(model).scale[0].item()
    train_scales_only(model)
    layer = first(model)
    layer.weight_scale.data[0] = -0.01
    assert layer.weight.isfinite().all()
    optimizer = torch.optim.Adam([layer.weight_scale], lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        (layer.weight - target).square().sum().backward()
        optimizer.step()
    assert 0.2 * was < layer.scale[0].item() < 2 * was
    assert (layer.weight[0] - target[0]).norm() < target[0].norm()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_scales_train(tiny, scheme):
    model = policy(tiny, scheme)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(IDS).logits
    scales = train_scales_only(model)
    assert torch.equal(model(IDS).logits, logits)  # scales begin on the grid
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {f"{name}.weight_scale" for name in quantized_layers(model)}
    assert len(scales) == 14
    optimizer = torch.optim.AdamW(scales, lr=3e-4, weight_decay=0.0)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    after = model.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == trained


def test_scales_alone_bring_a_2_bit_model_nearer_to_its_teacher(tiny):
    teacher, model = tiny.llama(layers=2, width=32), tiny.llama(layers=2, width=32)
    quantize_model(model, WeightScheme(bits=2))
    optimizer = torch.optim.Adam(train_scales_only(model), lr=1e-3)
    ids = torch.randint(0, 43, (8, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = teacher(ids).logits.log_softmax(-1)
    divergences = []
    for _ in range(40):
        optimizer.zero_grad()
        kl = (told.exp() * (told - model(ids).logits.log_softmax(-1))).sum(-1).mean()
        kl.backward()
        optimizer.step()
        divergences.append(kl.item())
    assert divergences[-1] < 0.9 * divergences[0]  # 0.79 to 0.65


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_was_trained_is_what_codes_and_scales_say(tiny, scheme):
    """So an exporter that keeps scales in their type writes this very weight."""
    model = policy(tiny, scheme)
    train_scales_only(model)
    layer = first(model)
    layer.weight_scale.data *= 1.0371
    kept = layer.scale.detach().to(SCALE_DTYPES[scheme.scale_dtype])
    zero_point = layer.weight_zero_point
    codes = encode(layer.latent, kept.float(), zero_point, scheme)
    assert torch.equal(decode(codes, kept.float(), zero_point, scheme), layer.weight)
    again = policy(tiny, scheme)
    train_scales_only(again)
    again.load_state_dict(model.state_dict())
    assert torch.equal(first(again).weight, layer.weight)


def test_scales_keep_their_precision_in_half_precision(tiny):
    model = policy(tiny)
    train_scales_only(model)
    first(model).weight_scale.data *= 1.0001
    before = first(model).weight_scale.detach().clone()
    model.to(torch.bfloat16)
    assert torch.equal(first(model).weight_scale, before)
    assert first(model).weight.dtype == torch.bfloat16


def test_twice_is_once(tiny):
    model = policy(tiny)
    scales = train_scales_only(model)
    assert all(one is other for one, other in zip(scales, train_scales_only(model), strict=True))


def test_nothing_to_train_is_refused(tiny):
    with pytest.raises(ValueError, match="set bits"):
        train_scales_only(tiny.llama())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_exported_is_what_was_trained(tiny, tmp_path, scheme):
    """Scales that training left between the numbers of their type: the file holds those that were used."""
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    from extensions.trl.qdpo.export import export_packed

    model = tiny.llama(width=32, vocabulary=43).eval()
    quantize_model(model, scheme)
    for scale in train_scales_only(model):
        scale.data *= 1.0371
    export_packed(model, tiny.tokenizer(), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
