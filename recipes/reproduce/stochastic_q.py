"""The experiments of the paper on stochastic Q-learning (Fourati et al., ICML 2024), part by part.

    OMP_NUM_THREADS=1 python -m recipes.reproduce.stochastic_q --part PART [arguments of the part]

    tables    FrozenLake, CliffWalking and an MDP of 256 actions     docs/benchmarks/stochastic_q_tabular.md
    control   InvertedPendulum and HalfCheetah, cut into levels      docs/benchmarks/stochastic_q_deep.md
    time      time of a step, and what a speed-up is made of         docs/benchmarks/stochastic_q_deep.md
    scale     10^3 to 10^6 actions, and without each of the parts    docs/benchmarks/stochastic_q_scale.md

``--part PART --help`` says what a part takes.
"""

from __future__ import annotations

import argparse
import importlib
import sys

PARTS = {
    "tables": "stochastic_q_tabular",
    "control": "stochastic_q_control",
    "time": "stochastic_q_time",
    "scale": "stochastic_q_scale",
}


def main(argv: list[str] | None = None) -> None:
    given = sys.argv[1:] if argv is None else argv
    # Asked for help on a part, it is the part that answers.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, add_help="--part" not in given
    )
    parser.add_argument("--part", choices=PARTS, required=True)
    options, arguments = parser.parse_known_args(given)
    importlib.import_module(f"{__package__}.{PARTS[options.part]}").main(arguments)


if __name__ == "__main__":
    main()
