"""How much each plan that comes with vprompt computes, and the hours that would take on one GPU.

    python recipes/plan_hours.py [--tmacs 30] > docs/plan_hours.csv

The hours are reckoned from multiply-accumulates, not measured: a GPU that sustains 30 TMAC/s (60 TFLOP/s) while it
trains is one of the A100's class in bf16.
"""

from __future__ import annotations

import argparse
import tempfile

from vprompt.experiments.bench.bench import gmacs_of
from vprompt.experiments.bench.grid import cells_of, tasks_of
from vprompt.experiments.bench.plan import load_plan, shipped_plans
from vprompt.experiments.bench.scheduler import preview
from vprompt.experiments.bench.store import open_store


def main() -> None:
    """Prints a line for each plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tmacs", type=float, default=30.0, help="10^12 multiply-accumulates a second")
    options = parser.parse_args()
    print("plan,runs,trials,10^15 MACs,hours")
    for name in shipped_plans():
        plan = load_plan(name)
        tasks, optional = tasks_of(plan)
        jobs, _ = preview(cells_of(plan, [*tasks, *optional]), open_store(tempfile.gettempdir() + "/nothing-here"))
        gmacs = sum(gmacs_of(job) for job in jobs)
        trials = sum(job.until is not None for job in jobs)
        hours = gmacs / (1e3 * options.tmacs) / 3600
        print(f"{name},{len(jobs) - trials},{trials},{gmacs / 1e6:.1f},{hours:.1f}")


if __name__ == "__main__":
    main()
