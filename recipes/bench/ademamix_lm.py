"""AdEMAMix and AdamW on a small language model: every run behind docs/benchmarks/ademamix_lm.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.ademamix_lm [--scale tiny] [--report]

Either optimizer is tuned with the same number of trials. Then come whole runs of AdamW of several lengths and
of AdEMAMix of one, and the ablations. Runs that have ended are kept and those that were killed go on, so it
may be stopped at any time. What there is so far is then put together: ademamix_lm.csv (every run),
ademamix_lm_probe.csv (what became of the probe), ademamix_lm.png and the tables in ademamix_lm.md.
"""

from __future__ import annotations

import argparse
import shutil
import warnings

from ..ademamix_lm import train
from ..run_folder import RunFolder
from .ademamix_lm_page import report
from .ademamix_lm_plan import SCALES, Job, Scale, Setting, ablations, beyond_jobs, compared, tune
from .ademamix_lm_runs import folder_of, has_settings_of, loss_of, settings_of
from .kept_runs import printing_into


def run(job: Job) -> None:
    """Train to the end, going on with what there is."""
    folder = folder_of(job)
    if (folder / "result.json").exists():
        return
    if not any(folder.glob("checkpoint-*")) or not has_settings_of(job):
        shutil.rmtree(folder, ignore_errors=True)  # nothing to go on from
    with printing_into(folder / "log"), warnings.catch_warnings():
        # That there are no warm-ups is what one of the ablations is there to show.
        warnings.filterwarnings("ignore", message="AdEMAMix with alpha > 1 and no alpha_warmup")
        found = train(settings_of(job), RunFolder(folder))
    excess = "diverged" if found["excess"] is None else f"{found['excess']:.4f}"
    print(f"{job.part}, {job.name}, seed {job.seed}: {excess}, {found['cpu_s']:.1f} s", flush=True)


def run_all(scale: Scale) -> None:
    """Everything at a scale."""

    def run_and_look(job: Job) -> float | None:
        run(job)
        return loss_of(job)

    best: dict[str, Setting] = {}
    for optimizer in ("adamw", "ademamix"):
        _, chosen = tune(scale, optimizer, run_and_look)
        if chosen is None:
            raise SystemExit("A run of the tuning was made with other settings: see above.")
        best[optimizer] = chosen
        print(f"{optimizer}: {chosen}", flush=True)
    for jobs in (compared, ablations, beyond_jobs):
        for job in jobs(scale, best):
            run(job)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=SCALES, default="tiny", help="the size of the comparison")
    parser.add_argument("--report", action="store_true", help="run nothing, report what there is")
    options = parser.parse_args()
    if not options.report:
        run_all(SCALES[options.scale])
    report()


if __name__ == "__main__":
    main()
