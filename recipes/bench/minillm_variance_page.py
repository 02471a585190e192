"""What is said of the figures of :mod:`.minillm_variance`: tables, what they answer, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .action_scaling_page import table

Row = dict[str, Any]
BENCH = "recipes/bench/minillm_variance.py"

EQUAL = "equal reverse KL"

SAID = """
- **In absolute terms, yes.** Every estimator's variance grows as the teacher gets sharper, several dozen
  times over the range here (whitened advantages: about twice), and with the number of templates.
- **Relative to the gradient, it depends on what grows.** With a sharper teacher the gradient's square grows
  faster than the variance, and fewer answers are needed to see the gradient. With more templates, a richer
  teacher, more are needed.
- **It is the distance more than the sharpness.** A student that is fitted as well as it can be is further
  from a sharper teacher. With the reverse KL held equal, the variance of the policy gradient hardly depends
  on the teacher between e = 0.1 and 0.005; that of equation 7 grows by less than a half.
- **What helps.** A baseline saves more of the variance than the exact single step does, and costs nothing.
  Together they save more than half. What is left is mostly the long-term part. Length normalisation
  (equation 7) has about a third of the variance, and another target.
- **The mixture does not help the noise**: with alpha = 0.2 equation 7 has about the same variance and less
  signal than with alpha = 0. And the token's weight w_t hardly corrects for the mixture here: its mean
  gradient is about as far off as without any weights, since what the mixture changes is mostly the rewards
  to come. That distance grows in proportion to alpha. Products of weights have no bias and, at alpha = 0.2,
  a quarter more variance.
"""

NOTES = """
`extensions.trl.minillm.variance.gradient_variance` measures the same on your own models and prompts.

In the exact language (`recipes/exact_language.py`) a prompt has K templates, and the teacher exchanges each
token of a template with probability e: the lower e, the sharper the teacher, as a larger model is. Its
probabilities are known without any training. The student sees the place in the answer and the token before,
no more. It is first fitted to the least forward KL, as if by endless answers of the teacher.

Then 2,000 answers to each of four prompts are drawn, and the gradient of each answer's loss by all
parameters is taken, once for each estimator, and on the same answers wherever alpha is the same. *Variance*
is the trace of the covariance of one answer's gradient at a given prompt, *signal* the squared length of
the mean gradient (debiased), both averaged over prompts; *relative noise* is variance / signal, the number
of answers it takes until noise and signal are equal. All are means over five seeds, which draw templates
and weights.

The objectives are those of `extensions.trl.minillm.objective`. The first five have one and the same mean,
the gradient of KL(q || p), but for the share of one answer in all that reach a position, which a position
baseline takes away; `tests/trl/test_minillm_gradient.py` checks them against enumeration. Those with
equation 7 (also the modes of the trainer) and a single step alone aim elsewhere, and less noise about
another target is not by itself an advantage. The reference mode whitens its advantages, so that its
variance is in other units. Products of weights aim at KL(q || p) with answers of the mixture.
"""


def mean(rows: list[Row], quantity: str, **wanted: Any) -> float:
    """Mean over seeds of what fits; relative noise is the ratio of two such means."""
    if quantity == "relative":
        return mean(rows, "variance", **wanted) / mean(rows, "signal", **wanted)
    found = [r[quantity] for r in rows if all(r[key] == value for key, value in wanted.items())]
    return float(np.mean(found)) if found else float("nan")


def values(rows: list[Row], key: str) -> list[Any]:
    """What there is, in the order of the rows."""
    return list(dict.fromkeys(r[key] for r in rows))


def number(x: float) -> str:
    """Three digits; nothing for what was not measured, 0 for what is but the rounding of numbers."""
    if np.isnan(x):
        return ""
    if abs(x) < 1e-9:
        return "0"
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def grid(rows: list[Row], quantity: str, **wanted: Any) -> str:
    """A row an estimator, a column a noise of the teacher."""
    chosen = [r for r in rows if all(r[key] == value for key, value in wanted.items())]
    noises = values(chosen, "noise")
    return table(
        ["estimator", *(f"e = {e:g}" for e in noises)],
        [
            [name, *(number(mean(chosen, quantity, estimator=name, noise=e)) for e in noises)]
            for name in values(chosen, "estimator")
        ],
    )


def in_every_world(rows: list[Row]) -> list[Row]:
    """Those rows whose noise has students of equal reverse KL for as many seeds as there are."""
    seeds = {
        (r["noise"], r["templates"]): {x["seed"] for x in rows if same_column(x, r)}
        for r in rows
        if r["students"] == EQUAL
    }
    every = set(values(rows, "seed"))
    return [r for r in rows if r["students"] != EQUAL or seeds[r["noise"], r["templates"]] == every]


def same_column(one: Row, other: Row) -> bool:
    return all(one[key] == other[key] for key in ("students", "noise", "templates"))


def answers(rows: list[Row], templates: int) -> str:
    """The question's answers in numbers: from the dullest teacher to the sharpest."""
    dull, sharp = max(values(rows, "noise")), min(values(rows, "noise"))
    lines = []
    for name in ("policy gradient", "single step + long term", "equation 7, alpha 0.2"):
        here = {"students": "fitted", "templates": templates, "estimator": name}
        grows = mean(rows, "variance", **here, noise=sharp) / mean(rows, "variance", **here, noise=dull)
        from_, to = (mean(rows, "relative", **here, noise=e) for e in (dull, sharp))
        held = {**here, "students": EQUAL}
        equal = {e: mean(rows, "variance", **held, noise=e) for e in values(rows, "noise")}
        equal = {e: x for e, x in equal.items() if not np.isnan(x)}
        lines.append(
            f"| {name} | x {grows:.0f} | {number(from_)} to {number(to)} "
            f"| x {equal[sharp] / equal[max(equal)]:.2f} (from e = {max(equal):g}) |"
        )
    head = (
        f"| estimator, K = {templates} | variance, e = {dull:g} to {sharp:g} | relative noise "
        "| variance at equal reverse KL |\n|---|---|---|---|"
    )
    return "\n".join([head, *lines])


def savings(rows: list[Row], templates: int, noise: float) -> str:
    """What each tool saves of the variance of the same target."""
    here = {"students": "fitted", "templates": templates, "noise": noise}
    base = mean(rows, "variance", **here, estimator="policy gradient")
    names = [
        "policy gradient, position baseline",
        "policy gradient, leave-one-out",
        "single step + long term",
        "single step + long term, leave-one-out",
    ]
    return table(
        ["in place of the policy gradient", f"variance, e = {noise:g}", "saved"],
        [
            [name, number(v), f"{1 - v / base:.0%}"]
            for name in names
            for v in [mean(rows, "variance", **here, estimator=name)]
        ],
    )


def distances(rows: list[Row], templates: int) -> str:
    """How far the fitted students are."""
    parts = []
    for noise in values(rows, "noise"):
        x = mean(rows, "reverse_kl", students="fitted", templates=templates, noise=noise)
        parts.append(f"{number(x)} nats at e = {noise:g}")
    return ", ".join(parts)


def by_templates(rows: list[Row], noise: float) -> str:
    """A row a number of templates."""
    lines = []
    for k in values(rows, "templates"):
        line = [str(k)]
        for name in ("policy gradient", "single step + long term, leave-one-out", "equation 7, alpha 0.2"):
            here = {"students": "fitted", "templates": k, "noise": noise, "estimator": name}
            line.append(
                f"{number(mean(rows, 'variance', **here))} / {number(mean(rows, 'relative', **here))}"
            )
        lines.append([*line, number(mean(rows, "reverse_kl", students="fitted", templates=k, noise=noise))])
    head = ["K", "policy gradient", "single step + long term, leave-one-out", "equation 7, alpha 0.2"]
    return table([*head, "reverse KL, nats"], lines)


def by_alpha(rows: list[Row], noise: float) -> str:
    """A row a share of the teacher and kind of weight."""
    return table(
        ["alpha", "weights", "effective sample size / samples", "bias", "variance"],
        [
            [
                f"{alpha:g}",
                weights,
                *(
                    number(mean(rows, q, noise=noise, alpha=alpha, weights=weights))
                    for q in ("ess", "bias", "variance")
                ),
            ]
            for alpha in values(rows, "alpha")
            for weights in ("token", "prefix", "none")
            if alpha > 0 or weights == "none"
        ],
    )


def write_page(path: Path, teachers: list[Row], alphas: list[Row], about: str) -> None:
    """The page, from the rows of every world."""
    teachers, templates = in_every_world(teachers), 5
    mixture_noise = values(alphas, "noise")[len(values(alphas, "noise")) // 2]
    here = {"templates": templates}
    text = ["# Noise of MiniLLM's gradient against the teacher"]
    text += [f"`python -m recipes.bench.minillm_variance`, {about}."]
    text += ["Does the variance get worse as the teacher grows?", answers(teachers, templates)]
    text += [SAID.strip()]
    text += ["![Variance, relative noise, and the mixture](minillm_variance.png)", NOTES.strip()]
    text += ["## What each tool saves", savings(teachers, templates, min(values(teachers, "noise")))]
    text += [f"## Variance, K = {templates}", grid(teachers, "variance", students="fitted", **here)]
    text += [
        f"## Relative noise (variance / signal), K = {templates}",
        grid(teachers, "relative", students="fitted", **here),
    ]
    text += [
        f"## At equal reverse KL, K = {templates}",
        f"The sharper the teacher, the further away is a fitted student: {distances(teachers, templates)}. "
        "Here students of duller teachers are held back: all their scores are multiplied by one number "
        "below 1, until the reverse KL is that of the sharpest teacher's student. Where even uniform answers "
        "are nearer in some world, there is no column. Students that are held back answer more evenly than "
        "fitted ones, so that not everything is equal: in the last column they are not held back.",
        "Variance:",
        grid(teachers, "variance", students=EQUAL, **here),
        "Relative noise:",
        grid(teachers, "relative", students=EQUAL, **here),
    ]
    noise = 0.05 if 0.05 in values(teachers, "noise") else min(values(teachers, "noise"))
    text += [f"## Number of templates, e = {noise:g}", "Variance / relative noise:"]
    text += [by_templates(teachers, noise)]
    text += [
        f"## The mixture, e = {mixture_noise:g}, K = 5",
        "The objective of equation 3 with each kind of weight. *Bias* is the distance of the enumerated mean "
        "from the enumerated gradient, over the latter's length. The effective sample size is that of tokens "
        "for the tokens' weights, and of whole answers for products (prefix).",
        by_alpha(alphas, mixture_noise),
    ]
    text += ["Every world and seed: `minillm_variance.csv`, `minillm_variance_alpha.csv`."]
    path.write_text("\n\n".join(text) + "\n")


def draw(path: Path, teachers: list[Row], alphas: list[Row]) -> None:
    """Variance and relative noise of fitted students, variance at equal reverse KL, and the mixture."""
    teachers = in_every_world(teachers)
    figure, axes = plt.subplots(1, 4, figsize=(19, 5.2), layout="constrained")
    names = [
        "policy gradient",
        "policy gradient, leave-one-out",
        "single step + long term",
        "single step + long term, leave-one-out",
        "equation 7, alpha 0",
        "equation 7, alpha 0.2",
        "single step alone, exact",
    ]
    panels = [
        ("fitted", "variance", "Variance, fitted students"),
        ("fitted", "relative", "Variance / signal, fitted students"),
        (EQUAL, "variance", "Variance at equal reverse KL"),
    ]
    noises = values(teachers, "noise")
    for ax, (students, quantity, title) in zip(axes, panels, strict=False):
        for i, name in enumerate(names):
            here = {"students": students, "templates": 5, "estimator": name}
            y = [mean(teachers, quantity, **here, noise=e) for e in noises]
            ax.plot(noises, y, marker="o", markersize=3, color=f"C{i}", label=name)
        ax.set(
            xscale="log", yscale="log", xlabel="noise e of the teacher (sharper to the right)", title=title
        )
        ax.set_xlim(max(noises) * 1.2, min(noises) / 1.2)
        ax.set_xticks(noises, [f"{e:g}" for e in noises])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    last = axes[3]
    noise = values(alphas, "noise")[len(values(alphas, "noise")) // 2]
    for i, (weights, label) in enumerate({"token": "w_t", "prefix": "products", "none": "none"}.items()):
        for quantity, style in (("ess", "-"), ("bias", "--")):
            y = [
                mean(alphas, quantity, noise=noise, alpha=a, weights=weights) for a in values(alphas, "alpha")
            ]
            what = "effective sample size" if quantity == "ess" else "bias"
            last.plot(values(alphas, "alpha"), y, style, color=f"C{i}", label=f"{label}: {what}")
    last.set(xlabel="the teacher's share alpha", title=f"Weights, e = {noise:g}", ylim=(-0.03, 1.05))
    last.legend(fontsize=8)
    last.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)
