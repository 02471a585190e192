"""The same on a GPU as on the CPU."""

import pytest
import torch

from envs.sequence_tasks import SequenceTask
from extensions.glasses import (
    GlassesReport,
    HFCausalLM,
    Ones,
    ReportConfig,
    answer_items,
    bound_check,
    collapse_curve,
    lipschitz_bound,
    path_profile,
    preflight,
    representation_gap,
    return_sensitivity,
    reward_ceiling,
    sensitivity_profile,
)
from extensions.glasses.adapters import DecisionTransformerAdapter
from extensions.glasses.remedies import adaptive_temperature, sliding_window, upcast

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def both(make_llama, char_tokenizer):
    """One model on the CPU, and the same on the GPU."""
    return [
        HFCausalLM(make_llama(len(char_tokenizer)).to(device), char_tokenizer) for device in ("cpu", "cuda")
    ]


def ids(n, rows=2):
    return torch.randint(5, 90, (rows, n), generator=torch.Generator().manual_seed(n))


def test_gaps(both):
    here, there = (representation_gap(m, ids(20), ids(21), reference="float64") for m in both)
    assert torch.allclose(here.gap["float64"], there.gap["float64"].cpu(), rtol=1e-6)
    assert (there.rounding["bfloat16"] > there.rounding["float32"]).all()


def test_curves(both):
    here, there = (collapse_curve(m, Ones(20, prefix=[7, 8]), (8, 32), reference="float64") for m in both)
    assert here.slope().value == pytest.approx(there.slope().value, rel=1e-4)
    assert there.to_json()


@pytest.mark.parametrize("attention", ["full", "frozen"])
@pytest.mark.parametrize("mode", ["exact", "spectral"])
def test_sensitivities(both, mode, attention):
    here, there = (sensitivity_profile(m, ids(16), mode=mode, attention=attention) for m in both)
    assert torch.allclose(here.fro, there.fro.cpu(), rtol=1e-2)


def test_estimates_use_the_same_probes(both):
    here, there = (
        sensitivity_profile(m, ids(16), mode="hutchinson", generator=torch.Generator().manual_seed(0))
        for m in both
    )
    assert torch.allclose(here.fro, there.fro.cpu(), rtol=1e-2)
    assert there.u_index == pytest.approx(here.u_index, rel=1e-2)


def test_bounds(both):
    model = both[1]
    profile = sensitivity_profile(model, ids(16), mode="spectral", attention="frozen")
    assert bound_check(profile, lipschitz_bound(model, ids(16))).violations == 0
    assert path_profile(model.attentions(model.embed(ids(16)))).device.type == "cuda"


def test_answers_and_remedies(both):
    items = SequenceTask("copy_last", prompt_style="terse").items(12, 4)
    for remedy in (adaptive_temperature, lambda m: sliding_window(m, 4), upcast):
        margins = []
        for model in both:
            with remedy(model):
                margins.append(answer_items(model, items).margin)
        assert torch.allclose(*margins, atol=1e-2)


def test_checks_before_a_run(both):
    here, there = (preflight(m, ["Count the ones: 1 0 1 1"], "bfloat16", snr=0) for m in both)
    assert torch.allclose(here.gap, there.gap.cpu(), rtol=1e-2)


def test_ceilings(both):
    prompts, answers = [ids(8, 1)[0], ids(9, 1)[0]], [1, 2]
    here, there = (reward_ceiling(m, prompts, answers).value for m in both)
    assert here == there == 1.0


def test_a_report(both, tmp_path):
    config = ReportConfig(
        [SequenceTask("copy_last", prompt_style="terse")], (4, 8), trials=2, probes=2, retrieval=None
    )
    GlassesReport(both[1], config).run().save(tmp_path)
    assert (tmp_path / "report.md").exists()


def test_returns():
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    torch.manual_seed(0)
    config = DecisionTransformerConfig(state_dim=3, act_dim=2, hidden_size=16, n_layer=2, n_head=2)
    host = DecisionTransformerModel(config).eval()
    batch = {
        "observation": torch.randn(4, 5, 3),
        "action": torch.randn(4, 5, 2),
        "return_to_go": torch.randn(4, 5, 1),
        "timestep": torch.arange(5).expand(4, 5),
    }
    here = return_sensitivity(DecisionTransformerAdapter(host), batch)
    on_gpu = {name: x.cuda() for name, x in batch.items()}
    there = return_sensitivity(DecisionTransformerAdapter(host.cuda()), on_gpu)
    assert torch.allclose(here.by_return, there.by_return.cpu(), rtol=1e-2)
