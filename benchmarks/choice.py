"""Whether what `mer tune` says is best is best when it is timed again.

    python3 -m benchmarks.choice --out benchmarks/results [--network mtee_mosei] [--items 64]

Tunes each network twice on items of the lengths that occur, and looks up the choice of the first profile for every goal
in the second. Writes `choice.json` and `choice.md`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks import output
from benchmarks.lengths import REAL, export, suite_parser
from benchmarks.suite import NETWORKS, random_bundle, real_samples
from benchmarks.tuning import computed_for
from mer_export.bundle import Bundle
from mer_export.markdown import table
from mer_export.progress import Lines
from runtimes.predict.machine_profile import Goal, Profile, choose, scores
from runtimes.speed.planning import make_plan
from runtimes.speed.tune import run_tune

ROOMY = 2.0
"""Times the least latency that the goal with a budget allows."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    chosen = suite_parser("choice", __doc__ or "", items=64).parse_args(arguments)
    line = output.command("choice", arguments)

    def run() -> None:
        networks = output.Entries(chosen.out, "choice", "networks", line, markdown)
        for name in chosen.network or REAL:
            networks.add(name, measure(name, chosen.items, chosen.buckets))

    output.end_well(run)


def measure(name: str, count: int, buckets: int) -> dict[str, Any]:
    """Exports the planned buckets of one network, tunes twice and judges the first profile by the second."""
    network = NETWORKS[name]
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / name, network)
        samples = real_samples(bundle.manifest.contract, network, count)
        plan = make_plan(bundle, samples, buckets, "these items", say=output.say)
        missing = export(bundle, name, [b.lengths for b in plan.buckets], computed_for(name))
        bundle = Bundle.open(bundle.root)
        first, second = (
            run_tune(bundle, samples, "these items", progress=Lines(lambda text: output.say(f"{name}: {text}")))
            for _ in range(2)
        )
    return {
        "items": len(samples),
        "buckets": len(plan.buckets),
        "ways": len(scores(first)),
        "not_exported": missing,
        "goals": judge(first, second),
        "load_average": [first.load_average, second.load_average],
    }


def judge(first: Profile, second: Profile) -> list[dict[str, Any]]:
    """For each goal what `first` chooses, and how much slower `second` finds it than its own choice.

    `slower` is a part of the best: 0.1 is 10 %. A budget that the choice breaks in `second` says so. Ways that only
    one of the two has, because a call was about too long to be timed, do not count.
    """
    shared = {s.way for s in scores(first)} & {s.way for s in scores(second)}
    first, second = (
        p.model_copy(update={"entries": [e for e in p.entries if e.way.in_any_bucket in shared]})
        for p in (first, second)
    )
    again = {s.way: s for s in scores(second)}
    budget = Goal("budget", ROOMY * choose(first, Goal("latency")).slowest_ms)
    found = []
    for goal in (Goal("latency"), Goal("throughput"), budget):
        own, best = again[choose(first, goal).way], choose(second, goal)
        took, least = (s.call_ms if goal.kind == "latency" else s.item_ms for s in (own, best))
        found.append(
            {
                "goal": goal.kind,
                "budget_ms": goal.budget_ms,
                "chosen": own.way.description,
                "best_again": best.way.description,
                "ms": took,
                "slower": took / least - 1,
                "kept_budget": goal.kind != "budget" or own.slowest_ms <= goal.budget_ms,
            }
        )
    return found


def markdown(found: dict[str, Any]) -> str:
    """The results as one table."""
    rows = [
        (
            name,
            f"{goal['goal']}={goal['budget_ms']:.1f}ms" if goal["budget_ms"] else goal["goal"],
            goal["chosen"],
            f"{goal['ms']:.2f}",
            goal["best_again"] if goal["slower"] else "the same",
            f"{goal['slower']:.1%}" + ("" if goal["kept_budget"] else ", over the budget"),
        )
        for name, network in found["networks"].items()
        for goal in network["goals"]
    ]
    counts = ", ".join(f"{n} {network['ways']} on {network['items']} items" for n, network in found["networks"].items())
    worst = max(goal["slower"] for network in found["networks"].values() for goal in network["goals"])
    return "\n".join(
        [
            *output.head("The choice of `mer tune`, timed again", found),
            f"Items of the lengths that occur, random weights; ways to run that were timed: {counts}.",
            f"Each network is tuned twice. `slower`: what the first run chose against the best, both by the times of "
            f"the second run. At most **{worst:.1%}**.",
            "",
            *table(("network", "goal", "chosen", "ms again", "best of the second run", "slower"), rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
