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


def test_a_single_context_is_asked_for_as_a_list(batch):
    with pytest.raises(TypeError, match=r"contexts must be a list: give \(6,\) for one"):
        PolicyReport(actor("dt"), batch, 6)


def test_train_mode(batch):
    model = actor("dt")
    model.module.train()
    with pytest.raises(ValueError, match="train mode"):
        PolicyReport(model, batch, (2,))


def padded(batch, real, side):
    """The last steps of each window, as many as are real, with padding on one side."""
    rows = {name: torch.zeros_like(x) for name, x in batch.items()}
    mask = torch.zeros(len(real), K, dtype=torch.bool)
    times = torch.zeros(len(real), K, dtype=torch.long)
    for row, steps in enumerate(real):
        place = slice(K - steps, None) if side == "left" else slice(steps)
        for name, x in batch.items():
            rows[name][row, place] = x[row, K - steps :]
        mask[row, place] = True
        times[row, place] = torch.arange(K - steps, K)
    return {**rows, "mask": mask, "timestep": times}


@pytest.mark.parametrize("kind", ["dt", "radt"])
def test_windows_padded_on_the_right_end_at_their_last_real_step(kind, batch):
    """Of contexts that are real in all windows, the figures are those of windows without padding."""
    model = actor(kind)
    times = {"timestep": torch.arange(K).expand(4, K)}
    whole = PolicyReport(model, {**batch, **times}, (2, 3)).run().parts
    for side in ("left", "right"):
        found = PolicyReport(model, padded(batch, (6, 4, 3, 5), side), (2, 3)).run().parts
        assert found["returns"]["shift_newest"] == pytest.approx(whole["returns"]["shift_newest"], rel=1e-4)
        assert found["return_gap"]["gap"] == pytest.approx(whole["return_gap"]["gap"], rel=1e-4)
        assert found["tokens"]["full"] == pytest.approx(whole["tokens"]["full"], rel=1e-3)


def test_the_gap_of_windows_padded_on_the_right_is_of_their_newest_return(batch):
    model = actor("radt")
    window = padded(batch, (6, 2, 3, 4), "right")
    higher = window["return_to_go"].clone()
    newest = (torch.arange(4), torch.tensor([5, 1, 2, 3]))
    higher[newest] += higher[newest].std()
    gap = representation_gap(
        model, window, {**window, "return_to_go": higher}, layers=[-1], norms=("l1",), dtypes=()
    ).gap["float32"]
    assert (gap > 0).all()
    parts = PolicyReport(model, window, (6,)).run().parts
    assert parts["return_gap"]["gap"][0] == pytest.approx(gap.mean().item(), rel=1e-5)


def test_paths_of_windows_padded_on_the_right_lead_to_their_newest_state(batch):
    report = PolicyReport(actor("dt"), padded(batch, (3, 3, 3, 3), "right"), (6,)).run()
    path = report.parts["tokens"]["path"]
    assert path[7] > 0  # the state of step 3
    assert path[8:] == [0] * 10


def test_times_given_once_are_those_of_all_windows(batch):
    model = actor("radt")
    times = torch.arange(3, 3 + K)
    once = PolicyReport(model, {**batch, "timestep": times}, (2, 6)).run().parts
    each = PolicyReport(model, {**batch, "timestep": times.expand(4, K)}, (2, 6)).run().parts
    assert json.dumps(once) == json.dumps(each)


def test_a_dtype_that_is_named_twice_is_one(batch):
    parts = PolicyReport(actor("dt"), batch, (2, 6), dtypes=("float32", "bfloat16", "float32")).run().parts
    assert list(parts["return_gap"]["snr"]) == ["bfloat16"]


def test_windows_that_say_nothing(batch):
    with pytest.raises(ValueError, match="at least 2 windows, got 1"):
        PolicyReport(actor("dt"), {name: x[:1] for name, x in batch.items()}, (2,))
    with pytest.raises(ValueError, match="each window needs a real step"):
        PolicyReport(actor("dt"), padded(batch, (6, 0, 3, 4), "right"), (2,))
