"""What theory says of collapse and over-squashing, measured without training. The figures of
glasses_theory.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.glasses_theory [--quick | --report] [--out DIR]

Gaps of one random attention layer at growing lengths, in float64 and in lower precisions; and the Jacobian of
a random Llama beside the paths of theorem 5.1, where attention is flat and where it is sharp.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from extensions.glasses import (
    HFCausalLM,
    Lens,
    ModuleAdapter,
    Ones,
    PairFamily,
    RandomThenRepeat,
    bound_check,
    collapse_curve,
    lipschitz_bound,
    path_profile,
    sensitivity_profile,
)

from .glasses_layer import POSITIONS, RandomAttention
from .glasses_theory_page import draw, write_page
from .minillm_page import commit_and_machine, read_about, read_rows, write_about, write_rows

SEEDS = 20
LENGTHS = (128, 256, 512, 1024, 2048)
DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn")
FLOOR_LENGTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
FAMILIES = ("ones", "no prefix", "random")
PREFIX = 8
STDS = (0.02, 0.1, 0.2)  # of a random Llama's weights: from flat attention to sharp
TOKENS = 96

Row = dict[str, Any]


def family(name: str, seed: int, vocabulary: int) -> PairFamily:
    """Ones behind random tokens, ones alone, or random tokens and a repeated one."""
    others = range(2, vocabulary)
    if name == "random":
        return RandomThenRepeat(others, last=1, draws=2, seed=seed)
    if name == "no prefix":
        return Ones(1)
    draws = torch.randint(2, vocabulary, (PREFIX,), generator=torch.Generator().manual_seed(seed))
    return Ones(1, prefix=draws)


def gaps(
    positions: str, name: str, seed: int, lengths: tuple[int, ...], dtypes: tuple[str, ...]
) -> Iterator[Row]:
    """A row for each length and dtype; L1, behind the norm."""
    layer = RandomAttention(positions, seed=seed).eval()
    model = ModuleAdapter(layer, embed=layer.embed)
    curve = collapse_curve(
        model,
        family(name, seed, len(layer.tokens)),
        lengths,
        layers=[-1],
        dtypes=dtypes,
        reference="float64",
        norms=("l1",),
        chunk=1,
    )
    for i, length in enumerate(lengths):
        for dtype in ("float64", *dtypes):
            yield {
                "positions": positions,
                "family": name,
                "seed": seed,
                "n": length,
                "dtype": dtype,
                "gap": curve.gap[dtype][i, 0, 0].item(),
                "rounding": curve.rounding[dtype][i, 0, 0].item() if dtype in curve.rounding else 0.0,
                "distortion": curve.distortion[dtype][i, 0, 0].item() if dtype in curve.rounding else 0.0,
            }


def random_llama(std: float, seed: int, width: int = 64, layers: int = 6) -> HFCausalLM:
    """A Llama with weights N(0, std^2), in eval mode."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        initializer_range=std,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HFCausalLM(LlamaForCausalLM(config).eval())


def random_tokens(n: int, seed: int, vocabulary: int = 64) -> Tensor:
    """(1, n) int64"""
    return torch.randint(vocabulary, (1, n), generator=torch.Generator().manual_seed(seed))


def paths(std: float, seed: int, tokens: int) -> Row:
    """Jacobian, paths and bound of a random Llama at one sharpness."""
    model, ids = random_llama(std, seed), random_tokens(tokens, seed)
    weights: list[Tensor] = []
    with torch.no_grad(), model.looking(Lens(record=weights.append)):
        model.states(model.embed(ids))
    entropy = torch.stack([torch.special.entr(w[:, :, -1]).sum(-1).mean() for w in weights]).mean().item()
    full = sensitivity_profile(model, ids, mode="exact")
    frozen = sensitivity_profile(model, ids, mode="spectral", attention="frozen")
    path = path_profile(weights)
    bound = bound_check(frozen, lipschitz_bound(model, ids))
    return {
        "std": std,
        "seed": seed,
        "entropy": entropy,
        "spearman_full": bound_check(full, path).spearman,
        "spearman_frozen": bound_check(frozen, path).spearman,
        "frozen_over_full": (frozen.fro.sum() / full.fro.sum()).item(),
        "u_index": full.u_index,
        "violations": bound.violations,
        "log_ratio_median": bound.log_ratio_median,
        "log_ratio_min": bound.log_ratio_min,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds and short sequences: no figures")
    parser.add_argument("--report", action="store_true", help="run nothing, make the page of what there is")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    seeds = 2 if options.quick else SEEDS
    lengths = (32, 64, 128) if options.quick else LENGTHS
    floors = FLOOR_LENGTHS[:5] if options.quick else FLOOR_LENGTHS
    tokens = 24 if options.quick else TOKENS

    of_gaps, of_floors, of_paths = (options.out / f"glasses_theory{x}.csv" for x in ("", "_floors", "_paths"))
    exact: list[Row] = []
    rounded: list[Row] = []
    jacobians: list[Row] = []
    if not options.report:
        for seed in range(seeds):
            for name in FAMILIES:
                for positions in POSITIONS:
                    exact += gaps(positions, name, seed, lengths, ())
                if name != "no prefix":
                    for positions in ("nope", "rope"):
                        rounded += gaps(positions, name, seed, floors, DTYPES)
            jacobians += [paths(std, seed, tokens) for std in STDS]
            print(f"seed {seed}", flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        for path, rows in ((of_gaps, exact), (of_floors, rounded), (of_paths, jacobians)):
            write_rows(path, rows)
        made_by = ("extensions/glasses", "recipes/bench/glasses_theory.py", "recipes/bench/glasses_layer.py")
        write_about(options.out / "glasses_theory.json", commit_and_machine(*made_by))
    exact, rounded, jacobians = (read_rows(path) for path in (of_gaps, of_floors, of_paths))
    about = read_about(options.out / "glasses_theory.json")
    write_page(options.out / "glasses_theory.md", exact, rounded, jacobians, about)
    draw(options.out / "glasses_theory.png", exact, rounded, jacobians)


if __name__ == "__main__":
    main()
