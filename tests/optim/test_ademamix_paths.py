"""The for-loop is the oracle of the other paths: foreach, fused, compiled, differentiable, and Triton's."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from extensions.optim import AdEMAMix
from extensions.optim._kernels import ademamix as kernels
from extensions.optim._kernels import build
from extensions.optim.ademamix import functional

SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "alpha": 4.0, "alpha_warmup": 9, "beta3_warmup": 7}
VARIANTS = [
    {},
    {"betas": (0.0, 0.99, 0.999)},
    {"maximize": True},
    {"alpha_warmup": None, "beta3_warmup": None, "alpha": 1.0},
    {"betas": (0.95, 0.9, 0.8)},
    {"weight_decay": 0.0},
]
SHAPES = [(300, 301), (7,), (), (0, 3), (2, 3, 4, 5)]
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])  # fmt: skip  # noqa: E501
DEVICES = ["cpu", CUDA]


def make(dtype, device="cpu", shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for shape in shapes
    ]


def train(params, steps=12, *, step=None, **settings):
    """A step for each of ``steps`` random gradients; returns the optimizer."""
    optimizer = AdEMAMix(params, **{**SETTINGS, **settings})
    make_step = optimizer.step if step is None else step(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params:
            real = torch.float64 if not p.is_complex() else torch.complex128
            p.grad = torch.randn(p.shape, generator=generator, dtype=real).to(p.device, p.dtype)
        make_step()
    return optimizer


def assert_same(params, others, *optimizers, **tolerance):
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, **tolerance)
        for name in optimizers[0].state[p] if optimizers else ():
            torch.testing.assert_close(
                optimizers[0].state[p][name], optimizers[1].state[q][name], check_device=False, **tolerance
            )


TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("path", [{"foreach": True}, {"fused": True}], ids=str)
def test_a_path_is_the_for_loop(path, variant, dtype, device):
    params, others = make(dtype, device), make(dtype, device)
    ours, oracle = train(params, **variant, **path), train(others, **variant, foreach=False)
    assert_same(params, others, ours, oracle, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("path", [{"foreach": True}, {"fused": True}], ids=str)
def test_half_precision_weights_are_rounded_once(path):
    # Both round the same float32 sum, so they agree but where that lies in the middle between two weights.
    params, others = make(torch.bfloat16), make(torch.bfloat16)
    train(params, 1, **path)
    train(others, 1, foreach=False)
    differ = sum((p != q).sum() for p, q in zip(params, others, strict=True))
    assert differ <= 5


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {"differentiable": True}], ids=str)
def test_complex_parameters_are_their_two_real_parts(path):
    params = make(torch.complex128, shapes=[(5, 3), (4,)])
    real = [torch.view_as_real(p.detach()).clone().requires_grad_() for p in params]
    if "differentiable" in path:
        params, real = [p.clone() for p in params], [p.clone() for p in real]
    ours, oracle = AdEMAMix(params, **SETTINGS, **path), AdEMAMix(real, **SETTINGS, **path)
    for seed in range(6):
        for p, r in zip(params, real, strict=True):
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(seed))
            r.grad = torch.view_as_real(p.grad)
        ours.step()
        oracle.step()
    for p, r in zip(params, real, strict=True):
        torch.testing.assert_close(torch.view_as_real(p), r, rtol=0.0, atol=1e-15)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", [{"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("gradients_alike", [True, False])
def test_parameters_that_do_not_lie_in_a_row(path, gradients_alike, device):
    base = [torch.randn(40, 60, dtype=torch.float64) for _ in range(3)]
    views = lambda: [  # noqa: E731
        base[0].to(device).t(),  # dense in another order
        base[1].to(device)[::2, ::3],  # with gaps
        base[2].to(device).view(40, 3, 5, 4).clone(memory_format=torch.channels_last),
    ]
    results = []
    for options in (path, {"foreach": False}):
        params = [v.requires_grad_() for v in views()]
        optimizer = AdEMAMix(params, **SETTINGS, **options)
        for seed in range(4):
            for p in params:
                generator = torch.Generator().manual_seed(seed)
                g = torch.randn(p.shape, dtype=p.dtype, generator=generator).to(device)
                p.grad = torch.empty_like(p).copy_(g) if gradients_alike else g
            optimizer.step()
        results.append(params)
    assert_same(*results, rtol=0.0, atol=1e-13)


def test_foreach_on_a_cpu_goes_through_large_tensors_piece_by_piece(monkeypatch):
    monkeypatch.setattr(functional, "CPU_BATCH", 100)
    pieces = []
    update = functional._multi_tensor_batch
    monkeypatch.setattr(
        functional,
        "_multi_tensor_batch",
        lambda batch, *args, **kw: (
            pieces.append([p.numel() for p in batch.params]),
            update(batch, *args, **kw),
        ),
    )
    threads = torch.get_num_threads()
    params, others = make(torch.float64), make(torch.float64)
    train(params, 2, foreach=True)
    train(others, 2, foreach=False)
    assert_same(params, others, rtol=0.0, atol=1e-13)
    assert all(sum(sizes) <= 100 * threads for sizes in pieces)
    assert sum(map(sum, pieces)) == 2 * sum(p.numel() for p in params)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_gradients_are_left_alone(path, device):
    p = make(torch.float32, device)[0]
    p.grad = torch.randn_like(p)
    before = p.grad.clone()
    AdEMAMix([p], maximize=True, **SETTINGS, **path).step()
    assert torch.equal(p.grad, before)


@pytest.mark.parametrize("path", [{"foreach": True}, {"fused": True}], ids=str)
def test_an_expanded_gradient_is_read_and_left_alone(path):
    p, q = torch.ones(5, requires_grad=True), torch.ones(5, requires_grad=True)
    for t, options in ((p, path), (q, {"foreach": False})):
        t.grad = torch.full((1,), 0.5).expand(5)
        AdEMAMix([t], **SETTINGS, **options).step()
        assert t.grad._version == 0
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("path", [{"foreach": True}, {"fused": True}], ids=str)
def test_fast_rates_keep_small_gradients_beside_large_moments(path):
    # m + r (g - m) with r = 1 would lose 1e-3 beside 1e6.
    p, q = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    for t, options in ((p, path), (q, {"foreach": False})):
        optimizer = AdEMAMix([t], lr=1.0, betas=(0.0, 0.0, 0.0), alpha=1.0, **options)
        for g in (1e6, 1e-3, 1e-3):
            t.grad = torch.full_like(t, g)
            optimizer.step()
    assert p.item() == pytest.approx(q.item(), abs=1e-6) == pytest.approx(-6.0, abs=1e-3)


@pytest.mark.parametrize("parameter_type", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gradient_type", [torch.bfloat16, torch.float32])
def test_gradients_of_another_type_than_the_parameters(parameter_type, gradient_type):
    for path in ({"foreach": True}, {"fused": True}):
        results = []
        for options in (path, {"foreach": False}):
            p = torch.ones(50, dtype=parameter_type)
            g = torch.linspace(-1, 1, 50).to(gradient_type)
            lists = [[p], [g], [torch.zeros(50)], [torch.zeros(50)], [torch.zeros(50)]]
            functional.ademamix(
                *lists,
                [torch.tensor(0.0)],
                [torch.tensor(0.0)],
                **options,
                beta1=0.9,
                beta2=0.99,
                beta3=0.999,
                alpha=2.0,
                alpha_warmup=None,
                beta3_warmup=None,
                lr=0.1,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
            results.append(p)
        torch.testing.assert_close(*results, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("found", [0.0, 1.0])
def test_fused_unscales_gradients_and_skips_infinities(found, device):
    params, others = make(torch.float32, device), make(torch.float32, device)
    ours, oracle = train(params, 3, fused=True), train(others, 3, fused=True)
    for p, q in zip(params, others, strict=True):
        q.grad = torch.ones_like(q)
        p.grad = torch.full_like(p, 1024.0)
    ours.grad_scale = torch.tensor(1024.0, device=device)
    ours.found_inf = torch.tensor(found, device=device)
    ours.step()
    if not found:
        oracle.step()
        assert torch.equal(params[0].grad, others[0].grad)  # left unscaled, as by torch's fused Adam
    assert_same(params, others, ours, oracle, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", [{"foreach": False}, {"fused": True}], ids=str)
def test_grad_scaler(path, device):
    model = torch.nn.Linear(8, 8, device=device)
    optimizer = AdEMAMix(model.parameters(), **SETTINGS, **path)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    before = model.weight.detach().clone()
    for x in (torch.ones(4, 8, device=device), torch.full((4, 8), torch.inf, device=device)):
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.isfinite(model.weight).all()
    assert not torch.equal(model.weight, before)
    assert optimizer.state[model.weight]["step"].item() == 1.0
    assert scaler.get_scale() == 2.0**9


def test_a_step_can_be_differentiated():
    # d p_new / d p_old through gradient, moments and decay, against finite differences.
    def new_weights(p, lr):
        q = p.clone()
        q.grad = p.pow(3)
        optimizer = AdEMAMix([q], **{**SETTINGS, "lr": lr}, differentiable=True)
        optimizer.state[q] = {
            "step": torch.tensor(2.0, dtype=torch.float64),
            "slow_step": torch.tensor(2.0, dtype=torch.float64),
            **{name: torch.full_like(q, 0.3).detach() for name in ("exp_avg", "exp_avg_slow", "exp_avg_sq")},
        }
        optimizer.step()
        return q

    p = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(new_weights, (p, lr))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"foreach": False}, {"foreach": True}, {"fused": True}, {"betas": (0.0, 0.99, 0.999)}],
    ids=str,
)
def test_torch_compile(options):
    # Without a 0-dim parameter: torch 2.13 leaves those on the CPU as they are, with its own AdamW too.
    shapes = [shape for shape in SHAPES if shape]
    params, others = make(torch.float64, shapes=shapes), make(torch.float64, shapes=shapes)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ours = train(params, step=lambda optimizer: torch.compile(optimizer.step), **options)
    oracle = train(others, foreach=False, **{k: v for k, v in options.items() if k == "betas"})
    assert_same(params, others, ours, oracle, rtol=1e-7, atol=1e-7)  # its step count is float32
    # The fused step is a kernel already, and is called as it is.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == ("fused" not in options)


def test_without_a_compiler_fused_is_the_for_loop_with_one_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    build.load_operators.cache_clear()
    params, others = make(torch.float32), make(torch.float32)
    try:
        with pytest.warns(UserWarning, match="no-such-compiler") as caught:
            ours = train(params, fused=True)
        assert sum("C++ compiler" in str(warning.message) for warning in caught) == 1
    finally:
        build.load_operators.cache_clear()
    oracle = train(others, foreach=False)
    assert_same(params, others, ours, oracle, rtol=0.0, atol=0.0)


def test_a_broken_source_says_what_the_compiler_said(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    source = tmp_path / "broken.cpp"
    source.write_text("int f( { return 1; }")
    with pytest.warns(UserWarning, match=r"error: expected"):
        assert not build.load_operators(source)


def test_a_library_cut_short_is_built_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "with space"))
    source = tmp_path / "one_more.cpp"
    source.write_text("int one_more() { return 1; }")
    library = build._library_of(source)
    library.write_bytes(b"")
    assert build.load_operators(source)
    assert library.stat().st_size > 0


def test_where_there_is_no_kernel_there_is_a_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "extensions.optim._kernels.ademamix_triton", None)
    for cached in (kernels._triton_works, kernels._warn_once):
        cached.cache_clear()
    try:
        with pytest.warns(UserWarning, match="wants Triton on CUDA"):
            assert kernels.fused_update_for(torch.device("cuda")) is None
        with pytest.warns(UserWarning, match="no fused step for mps"):
            assert kernels.fused_update_for(torch.device("mps")) is None
    finally:
        for cached in (kernels._triton_works, kernels._warn_once):
            cached.cache_clear()


# Its interpreter rounds bfloat16 towards zero, which the compiler does not: that type is tested on a GPU.
TRITON = """
import json, sys, torch
from extensions.optim import AdEMAMix
from extensions.optim.ademamix import functional
from extensions.optim._kernels.ademamix import cuda_update

VARIANTS, SETTINGS = json.loads(sys.argv[1])

def train(fused, dtype, found_inf, tensor_lr=False, **settings):
    if tensor_lr:
        settings["lr"] = torch.tensor(settings["lr"], dtype=torch.float64)
    functional.fused_update_for = lambda device: cuda_update
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in [(200, 201), (7,), (), (0, 3)]
    ] + [torch.randn(9, 8, generator=generator, dtype=torch.float64).to(dtype).t().requires_grad_()]
    optimizer = AdEMAMix(params, **settings, **({"fused": True} if fused else {"foreach": False}))
    for i in range(10):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
            if fused:
                p.grad *= 4
        if fused:
            optimizer.grad_scale = torch.tensor(4.0)
            optimizer.found_inf = torch.tensor(2.0 * (i == 4 and found_inf))  # of two devices
        if fused or i != 4 or not found_inf:
            optimizer.step()
        if i == 6:
            optimizer.reset_slow()
    return params + [optimizer.state[p][name] for p in params for name in optimizer.state[p]]

errors = []
for dtype in (torch.float64, torch.float32, torch.float16):
    for variant in VARIANTS:
        settings = {**SETTINGS, **variant}
        found_inf = settings["alpha"] == 1.0
        pairs = zip(train(True, dtype, found_inf, **settings), train(False, dtype, found_inf, **settings))
        errors.append([str(dtype), max((a - b).abs().max().item() for a, b in pairs if a.numel())])
print(json.dumps(errors))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with a CUDA build of torch")
def test_triton_under_its_interpreter():
    variants = [*VARIANTS, {"tensor_lr": True}]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", TRITON, json.dumps([variants, SETTINGS])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    bounds = {"torch.float64": 1e-13, "torch.float32": 2e-6, "torch.float16": 2e-3}
    errors = json.loads(done.stdout)
    assert len(errors) == 3 * len(variants)
    assert all(error <= bounds[dtype] for dtype, error in errors), errors


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("lr", [0.01, "tensor"])
def test_a_cuda_graph_holds_a_step(options, lr):
    lr = torch.tensor(0.01, device="cuda") if lr == "tensor" else lr
    # Two groups and two types, as with a decay for matrices only.
    params = make(torch.float32, "cuda") + make(torch.float64, "cuda")
    others = make(torch.float32, "cuda") + make(torch.float64, "cuda")
    groups = lambda ps: [{"params": ps[::2]}, {"params": ps[1::2], "weight_decay": 0.0}]  # noqa: E731
    ours = AdEMAMix(groups(params), **{**SETTINGS, "lr": lr}, capturable=True, **options)
    oracle = AdEMAMix(groups(others), **{**SETTINGS, "lr": 0.01}, foreach=False)
    grads = [torch.randn_like(p) for p in params]
    for p, q, g in zip(params, others, grads, strict=True):
        p.grad, q.grad = g, g.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ours.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for p, g in zip(params, grads, strict=True):
            p.grad = g * 1.0  # at an address of the graph's own
        ours.step()
    oracle.step()
    for i in range(8):
        for g, q in zip(grads, others, strict=True):
            g.fill_(0.1 * (i - 3))
            q.grad = g.clone()
        graph.replay()
        oracle.step()
    assert_same(params, others, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_fused_on_cuda_is_fused_on_the_cpu():
    params, others = make(torch.float32, "cuda"), make(torch.float32)
    train(params, fused=True)
    train(others, fused=True)
    assert_same([p.cpu() for p in params], others, rtol=2e-6, atol=2e-6)
