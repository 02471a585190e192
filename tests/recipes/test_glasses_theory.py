"""The theory's bench: its layer, its rows and its page."""

import math

import numpy as np
import pytest
import torch

from recipes.bench import glasses_theory
from recipes.bench.glasses_layer import POSITIONS, RandomAttention, rotate
from recipes.bench.glasses_theory import DTYPES, gaps, paths
from recipes.bench.glasses_theory_page import critical, exponent


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 8, dtype=torch.float64)
    turned_q, turned_k = (rotate(x.expand(10, 8)) for x in (q, k))
    scores = turned_q @ turned_k.T
    assert torch.allclose(scores[5, 3], scores[9, 7])
    assert not torch.allclose(scores[5, 3], scores[5, 4])
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(10))


def test_alibi_against_its_formula():
    layer = RandomAttention("steep_alibi", width=4, vocabulary=32)
    x = layer.embed(torch.arange(5)[None]).double()
    q, k, v = x[0].chunk(3, -1)
    scores = q @ k.T / 2 - 0.5 * (torch.arange(5)[:, None] - torch.arange(5))
    scores = scores.masked_fill(torch.ones(5, 5).bool().triu(1), -math.inf)
    expected = torch.nn.functional.layer_norm(v + scores.softmax(-1) @ v, (4,))
    assert torch.allclose(layer(x)[0], expected)


@pytest.mark.parametrize("positions", POSITIONS)
def test_layers_are_causal(positions):
    layer = RandomAttention(positions, width=4, vocabulary=32)
    x = layer.embed(torch.arange(6)[None])
    changed = x.clone()
    changed[:, 4:] = 0
    assert torch.allclose(layer(x)[:, :4], layer(changed)[:, :4], atol=1e-6)
    assert not torch.allclose(layer(x)[:, 4:], layer(changed)[:, 4:])


def test_unknown_positions():
    with pytest.raises(ValueError, match="positions must be one of nope"):
        RandomAttention("sinus")


def test_rows():
    rows = list(gaps("nope", "ones", 0, (4, 8), DTYPES))
    assert len(rows) == 2 * (1 + len(DTYPES))
    exact = [row for row in rows if row["dtype"] == "float64"]
    assert all(row["rounding"] == 0 for row in exact)
    by_dtype = {row["dtype"]: row["rounding"] for row in rows if row["n"] == 8}
    assert 0 < by_dtype["float32"] < by_dtype["float16"] < by_dtype["bfloat16"] < by_dtype["float8_e4m3fn"]


def test_rows_of_paths():
    row = paths(0.1, 0, 12)
    assert row["violations"] == 0
    assert row["frozen_over_full"] > 0
    assert row["log_ratio_min"] > 0


def test_exponents_of_power_laws():
    lengths = [10, 100, 1000]
    falls = np.array([[n**-1.5 * c for n in lengths] for c in (1.0, 2.0, 3.0)])
    assert exponent(lengths, falls) == pytest.approx((-1.5, -1.5, -1.5))
    assert math.isnan(exponent(lengths, falls * 0)[0])


def test_critical_lengths_of_both_noises():
    def row(dtype, n, **values):
        return {"positions": "nope", "family": "ones", "seed": 0, "n": n, "dtype": dtype} | values

    rows = [row("float64", n, gap=1 / n, rounding=0.0, distortion=0.0) for n in (10, 20, 40)]
    rows += [row("bfloat16", n, gap=1 / n, rounding=0.06, distortion=0.01) for n in (10, 20, 40)]
    assert critical(rows, "nope", "ones", "bfloat16") == "20 / > 40"


def test_the_whole_of_it_in_small(tmp_path):
    glasses_theory.main(["--quick", "--out", str(tmp_path)])
    page = (tmp_path / "glasses_theory.md").read_text()
    assert "| nope | ones |" in page
    assert "2 seeds; all weights are random" in page
    assert (tmp_path / "glasses_theory.png").read_bytes()[:4] == b"\x89PNG"
    glasses_theory.main(["--report", "--out", str(tmp_path)])
    assert (tmp_path / "glasses_theory.md").read_text() == page
