"""Where a training step of the published recipes goes on one CPU thread, and what each way to save some of it gives.

    python3 -m benchmarks.training --out benchmarks/results [--recipe cmerc/meld]

Whole epochs on synthetic data as wide as the real ones, networks and batches as published, interleaved. A way that a
recipe forbids (`group_by_length` where the protocol says what a batch holds) is left out. Writes
`training-1thread.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import output
from benchmarks.gpu.feeding import Clock
from mer_export import registry
from mer_export.data.synthetic import synthesise
from mer_export.errors import UsageError
from mer_export.markdown import table
from runtimes.speed.timing import interleave, ratio
from train import devices, loop
from train.batches import feed
from train.config import load_preset
from train.prepared import prepare
from train.seeds import seed_everything


@dataclass(frozen=True)
class Recipe:
    """A published recipe, the data set that is made up for it, how many items of it, and what is changed."""

    dataset: str
    items: int
    changed: tuple[str, ...] = ()


RANDOM = ("protocol.text_encoder=random",)
RECIPES = {
    "cmerc/meld": Recipe("meld", 120),
    "cmerc/meld, single semantics": Recipe("meld", 120, ("protocol.semantics=single",)),
    "cmerc/iemocap": Recipe("iemocap", 40),
    "mtee/mosei": Recipe("mosei_emo", 300),
    "emt/mosi": Recipe("mosi", 60, (*RANDOM, "protocol.accumulate=1")),
    "mult/mosi": Recipe("mosi", 20, RANDOM),
    "tfr_net/mosi": Recipe("mosi", 20, RANDOM),
}
"""BERT has random weights, which cost what trained ones do."""
WAYS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "memory given back after each step": (),
    "data on the device": ("device_data=always",),
    "batches of like length": ("group_by_length=true",),
}
GIVEN_BACK = "memory given back after each step"
LATE = 30
"""An epoch in which every curriculum has come to all items."""
PARTS = ("waiting", "forward", "backward")


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--recipe", choices=list(RECIPES), action="append", help="repeat for several; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved epochs of each way")
    chosen = parser.parse_args(arguments)
    line = output.command("training", arguments)

    def run() -> None:
        # Recipes of earlier runs stay beside the new ones.
        recipes = output.earlier(chosen.out / "training-1thread.json", "recipes")
        for name in chosen.recipe or RECIPES:
            output.say(name)
            recipes[name] = measure(name, chosen.rounds)
            found = {"command": line, "machine": output.here(), "recipes": recipes}
            output.write(chosen.out, "training-1thread", found, markdown(found))

    output.end_well(run)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of CPU time of an epoch in each way, how many times faster than as it is, and the parts of a step."""
    recipe, preset = RECIPES[name], name.partition(",")[0]
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        synthesise(preset.partition("/")[0], recipe.dataset, data, recipe.items)
        for way, sets in WAYS.items():
            with contextlib.suppress(UsageError):
                calls[way] = _epochs(preset, data, (*recipe.changed, *sets), way == GIVEN_BACK)
        calls["as it is"]()
        parts = _shares(calls["as it is"])
        turns = interleave(calls, rounds)
    base = turns["as it is"]
    return {
        "step_shares": parts,
        "ways": {
            way: {"cpu_s": t.latency().cpu_p50 / 1000, "times": ratio(base, t, cpu=True).model_dump()}
            for way, t in turns.items()
        },
    }


def _epochs(preset: str, data: Path, sets: tuple[str, ...], given_back: bool) -> Callable[[], object]:
    """A call that trains one epoch more; its `phase` is what it trains."""
    tokenizer = [f"data.tokenizer={data / 'tokenizer'}"] * (data / "tokenizer").is_dir()
    config = load_preset(preset, ["device=cpu", "precision=fp32", "threads=1", *tokenizer, *sets])
    prepared = prepare(config, data, draws_weights=True)
    seed_everything(0)
    model = registry.get(config.system).build(prepared.model_config)
    loop.set_statistics(model, prepared.unchanged)
    difficulty = {s.id: 0.0 for s in prepared.samples}
    phase = loop.Phase(
        config, prepared.settings, model, prepared.contract, prepared.samples, prepared.accelerator, difficulty
    )

    def epoch() -> object:
        kept = patch.object(devices, "kept_between_steps", contextlib.nullcontext)
        with kept if given_back else contextlib.nullcontext(), devices.computing(config, prepared.accelerator.device):
            return phase.epoch(LATE)

    epoch.phase = phase  # type: ignore[attr-defined]
    return epoch


def _shares(epoch: Callable[[], object]) -> dict[str, float]:
    """Parts of the wall time of an epoch."""
    clock, phase = Clock("cpu"), epoch.phase  # type: ignore[attr-defined]
    accelerator = phase.accelerator
    with (
        patch.object(loop, "feed", lambda *a: clock.each("waiting", feed(*a))),
        patch.object(phase.protocol, "step", clock.timed("forward", phase.protocol.step)),
        patch.object(accelerator, "backward", clock.timed("backward", accelerator.backward)),
    ):
        clock.timed("whole", epoch)()
    whole = clock.spent["whole"]
    return {part: clock.spent[part] / whole for part in PARTS}


def markdown(found: dict[str, Any]) -> str:
    """A row per recipe."""
    rows = []
    for name, row in found["recipes"].items():
        shares = row["step_shares"]
        cells = []
        for way in WAYS:
            times = row["ways"].get(way, {}).get("times")
            cells.append(f"{times['median']:.2f} [{times['q25']:.2f}, {times['q75']:.2f}]" if times else "–")
        rest = 1 - sum(shares.values())
        parts = (*(f"{shares[part]:.0%}" for part in PARTS), f"{rest:.0%}")
        rows.append((name, f"{row['ways']['as it is']['cpu_s']:.2f}", *parts, *cells[1:]))
    head = ("recipe", "CPU s per epoch", *PARTS, "the rest", *list(WAYS)[1:])
    return "\n".join(
        [
            "# Training on one thread",
            "",
            f"`{found['command']}`",
            "",
            output.where(found["machine"], 1),
            "Epochs of synthetic data as wide as the real ones, networks and batches as published, BERT with random "
            "weights. Parts of the time of an epoch; the rest is the optimiser, clipping and what is random. The last "
            "columns are times faster than as it is, CPU time, interleaved: below 1 is slower.",
            "",
            *table(head, rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
