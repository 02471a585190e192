"""The report on policies that are told a return."""

import json

import pytest
import torch
from torchrl.modules import DTActor
from torchrl.modules.models.decision_transformer import DecisionTransformer as TorchRLTransformer

from extensions.glasses import (
    DecisionTransformerAdapter,
    PolicyReport,
    RADTAdapter,
    representation_gap,
    return_sensitivity,
)
from extensions.torchrl import RADTActor

S, A, K = 3, 2, 6


def actor(kind):
    torch.manual_seed(0)
    if kind == "radt":
        return RADTAdapter(RADTActor(state_dim=S, action_dim=A, transformer_config={"n_embd": 16}).eval())
    config = TorchRLTransformer.default_config()
    config.n_embd, config.n_head, config.n_layer, config.n_inner = 16, 2, 2, 32
    return DecisionTransformerAdapter(DTActor(state_dim=S, action_dim=A, transformer_config=config).eval())


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    widths = {"observation": S, "action": A, "return_to_go": 1}
    return {name: torch.randn(4, K, width, generator=generator) for name, width in widths.items()}


@pytest.mark.parametrize("kind", ["dt", "radt"])
def test_files(kind, batch, tmp_path):
    report = PolicyReport(actor(kind), batch, (1, 3, 6), behaviour={"slope": 0.4, "error": None}).run()
    report.save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert list(saved["parts"]) == ["returns", "return_gap", "tokens", "behaviour"]
    assert ("path" in saved["parts"]["tokens"]) == (kind == "dt")
    text = (tmp_path / "report.md").read_text()
    for line in report.verdicts:
        assert line in text
    assert "behaviour: slope 0.4" in text
    assert (tmp_path / "returns.png").exists()
    assert (tmp_path / "tokens.png").exists()


def test_figures_are_those_of_their_functions(batch):
    model = actor("dt")
    parts = PolicyReport(model, batch, (2, 6), output=torch.tanh).run().parts
    for i, context in enumerate((2, 6)):
        found = return_sensitivity(model, batch, context=context, output=torch.tanh)
        assert parts["returns"]["newest_token"][i] == pytest.approx(
            found.newest_token.mean().item(), rel=1e-5
        )
        assert parts["returns"]["shift_all"][i] == pytest.approx(found.shift_all.mean().item(), rel=1e-5)
    higher = {name: x.clone() for name, x in batch.items()}
    higher["return_to_go"][:, -1] += batch["return_to_go"][:, -1].std()
    gap = representation_gap(model, batch, higher, layers=[-1], norms=("l1",))
    assert parts["return_gap"]["gap"][1] == pytest.approx(gap.gap["float32"].mean().item(), rel=1e-5)
    noise = gap.rounding["bfloat16"].mean().item()
    assert parts["return_gap"]["snr"]["bfloat16"][1] == pytest.approx(parts["return_gap"]["gap"][1] / noise)
    assert sum(parts["tokens"]["by_role"].values()) == pytest.approx(1, abs=1e-4)
    assert sum(parts["tokens"]["path"]) == pytest.approx(1, abs=1e-4)


def test_it_goes_on(batch, tmp_path):
    model = actor("dt")
    whole = PolicyReport(model, batch, (2, 6)).run(tmp_path)
    (tmp_path / "tokens.json").unlink()
    again = PolicyReport(model, batch, (2, 6)).run(tmp_path)
    assert json.dumps(again.parts) == json.dumps(whole.parts)


@pytest.mark.parametrize(
    ("contexts", "kind", "message"),
    [
        ((), {}, "contexts must be at least one and ascending"),
        ((6, 2), {}, "contexts must be at least one and ascending"),
        ((7,), {}, "context must be from 1 to 6"),
        ((2,), {"dtypes": ()}, "dtypes must be at least one"),
        ((2,), {"dtypes": ("int8",)}, "dtype must be one of"),
    ],
)
def test_bad_input(batch, contexts, kind, message):
    with pytest.raises(ValueError, match=message):
        PolicyReport(actor("dt"), batch, contexts, **kind)


def test_train_mode(batch):
    model = actor("dt")
    model.module.train()
    with pytest.raises(ValueError, match="train mode"):
        PolicyReport(model, batch, (2,))
