"""A training step of the published recipes on one CPU thread: beside the authors' loop, and where its time goes.

    python3 -m benchmarks.training --out benchmarks/results [--recipe cmerc/meld]

Whole epochs on synthetic data as wide as the real ones, networks and batches as published, interleaved, each way in a
process of its own: ours, the authors' (`authors_training`) on the same items from the same weights, and ours with each
way to save some of it. A way that a recipe forbids (`group_by_length` where the protocol says what a batch holds) is
left out, with the reason. Before that, one epoch of both without dropout: their mean losses. Writes
`training-1thread.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import nn

from benchmarks import output
from benchmarks.authors_training import Loop, loop_of
from benchmarks.gpu.feeding import Clock
from mer_export import registry
from mer_export.data.synthetic import synthesise
from mer_export.errors import NotAvailableError, UsageError
from mer_export.markdown import table
from runtimes.speed import timing
from runtimes.speed.timing import interleave, ratio
from train import devices, loop
from train.batches import feed
from train.config import load_preset
from train.prepared import prepare
from train.seeds import seed_everything

OURS, AUTHORS, GIVEN_BACK = "as it is", "the authors' loop", "memory given back after each step"
ALIKE, FAST = "batches of like length", "dropout drawn fast"
FROZEN = "frozen encoders without dropout"
WAYS: dict[str, tuple[str, ...]] = {
    OURS: (),
    GIVEN_BACK: (),
    "data on the device": ("device_data=always",),
    ALIKE: ("group_by_length=true",),
    FAST: ("fast_dropout=true",),
    FROZEN: ("protocol.freeze.dropout=false",),
}


@dataclass(frozen=True)
class Recipe:
    """A published recipe, the data set that is made up for it, how many items of it, and what is changed.

    Of a large network there is memory for some of the `ways` alone, and time for the `first` samples of an epoch.
    """

    dataset: str
    items: int
    changed: tuple[str, ...] = ()
    ways: tuple[str, ...] = tuple(WAYS)
    first: int | None = None


RANDOM = "protocol.text_encoder=random"
LATE = 30
"""An epoch in which every curriculum has come to all items."""
RECIPES = {
    "cmerc/meld": Recipe("meld", 120),
    "cmerc/meld, single semantics": Recipe("meld", 120, ("protocol.semantics=single",)),
    "cmerc/iemocap": Recipe("iemocap", 20),
    "mtee/mosei": Recipe("mosei_emo", 300),
    "emt/mosi": Recipe("mosi", 60, (RANDOM, "protocol.accumulate=1"), (OURS,)),
    "mult/mosi": Recipe("mosi", 20, (RANDOM,)),
    "tfr_net/mosi": Recipe("mosi", 20, (RANDOM,), (OURS, FAST)),
    "tab/iemocap": Recipe("iemocap", 24, (RANDOM, "protocol.audio_encoder=random"), (OURS, FAST, FROZEN)),
    "facialmmt/meld_fusion": Recipe(
        "meld",
        6,
        (
            RANDOM,
            "model.audio_len=300",
            "model.vision_len=100",
            "model.buckets=[{text_len: 512, audio_len: 300, vision_len: 100}]",
            # Of the one epoch of the recipe the rate would be past its end.
            f"epochs={LATE + 1}",
            # The authors draw it for whole arrays, so that losses could not be compared.
            "protocol.gumbel=false",
        ),
        (OURS,),
        first=8,
    ),
}
"""Encoders have random weights, which cost what trained ones do."""
PARTS = ("waiting", "forward", "backward")
LONG, FEW = 15.0, 2
"""Of an epoch of the authors' that takes more seconds there are no more rounds."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--recipe", choices=list(RECIPES), action="append", help="repeat for several; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved epochs of each way")
    chosen = parser.parse_args(arguments)
    line = output.command("training", arguments)

    def run() -> None:
        recipes = output.Entries(chosen.out, "training-1thread", "recipes", line, markdown)
        for name in chosen.recipe or RECIPES:
            output.say(name)
            recipes.add(name, measure(name, chosen.rounds))

    output.end_well(run)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of CPU time of an epoch in each way, how many times faster than two of them, and the parts of a step."""
    recipe, preset = RECIPES[name], name.partition(",")[0]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        data = Path(folder) / "data"
        synthesise(preset.partition("/")[0], recipe.dataset, data, recipe.items)

        def started(way: str) -> Apart:
            return stack.enter_context(contextlib.closing(Apart(preset, data, recipe, way)))

        with contextlib.closing(Apart(preset, data, recipe, AUTHORS)) as first:
            losses, seconds = first.ask("losses")
        output.say(f"{name}: mean losses {losses}, an epoch of the authors takes {seconds:.1f} s")
        ways, left_out = {AUTHORS: started(AUTHORS), OURS: started(OURS)}, {}
        parts = ways[OURS].ask("shares")
        for way in (w for w in recipe.ways if w != OURS):
            try:
                ways[way] = started(way)
            except UsageError as error:
                left_out[way] = str(error)
        rounds = min(rounds, FEW) if seconds > LONG else rounds
        turns = interleave({way: partial(own.ask, "epoch") for way, own in ways.items()}, rounds, clock=Reported())
    return {
        "step_shares": parts,
        "mean_losses": losses,
        "rounds": rounds,
        "left_out": left_out,
        "ways": {
            way: {
                "cpu_s": t.latency().cpu_p50 / 1000,
                "times_authors": ratio(turns[AUTHORS], t, cpu=True).model_dump(),
                "times": ratio(turns[OURS], t, cpu=True).model_dump(),
            }
            for way, t in turns.items()
        },
    }


class Reported(timing.Clock):
    """The times that a call says of itself."""

    def time(self, call: timing.Call) -> tuple[float, float]:
        return cast("tuple[float, float]", call())


class Apart:
    """One way to train, in a process of its own: what a run keeps in memory is no other's to find."""

    def __init__(self, preset: str, data: Path, recipe: Recipe, way: str):
        """Raises UsageError where the recipe forbids it."""
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, preset, data, recipe, way), daemon=True)
        self._process.start()
        theirs.close()
        if (problem := self._pipe.recv()) is not None:
            self._process.join()
            raise UsageError(problem)

    def ask(self, what: str) -> Any:
        """Lets it do something, and gives what comes of it; raises NotAvailableError where the system ended it."""
        try:
            self._pipe.send(what)
            return self._pipe.recv()
        except (BrokenPipeError, EOFError):
            self._process.join()
            ended = f"a way to train ended with {self._process.exitcode}, -9 is a lack of memory"
            raise NotAvailableError(f"{ended}: time fewer ways of this recipe") from None

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join()


def _serve(pipe: Any, preset: str, data: Path, recipe: Recipe, way: str) -> None:
    """Makes a way ready and does what it is asked until that is None."""
    torch.set_num_threads(1)
    try:
        epochs = Epochs(preset, data, (*recipe.changed, *WAYS.get(way, ())), recipe.first)
    except UsageError as error:
        pipe.send(str(error))
        return
    authors = TheirEpochs(epochs) if way == AUTHORS else None
    does: dict[str, Callable[[], Any]] = {
        "losses": lambda: _without_dropout(epochs, authors or TheirEpochs(epochs)),
        "shares": epochs.shares,
        "epoch": lambda: timing.MACHINE.time(authors or epochs),
    }
    pipe.send(None)
    kept = patch.object(devices, "kept_between_steps", contextlib.nullcontext)
    # All epochs of a run are one block.
    with (
        kept if way == GIVEN_BACK else contextlib.nullcontext(),
        epochs.computing() if authors is None else contextlib.nullcontext(),
    ):
        while (asked := pipe.recv()) is not None:
            pipe.send(does[asked]())


class Epochs:
    """Called, trains one epoch more and gives the mean of its losses."""

    def __init__(self, preset: str, data: Path, sets: tuple[str, ...], first: int | None = None):
        tokenizer = [f"data.tokenizer={data / 'tokenizer'}"] * (data / "tokenizer").is_dir()
        self.config = load_preset(preset, ["device=cpu", "precision=fp32", "threads=1", *tokenizer, *sets])
        prepared = prepare(self.config, data, draws_weights=True)
        seed_everything(0)
        self.model = registry.get(self.config.system).build(prepared.model_config)
        loop.set_statistics(self.model, prepared.unchanged)
        samples = prepared.samples[:first]
        difficulty = {s.id: 0.0 for s in samples}
        self.phase = loop.Phase(
            self.config,
            prepared.settings,
            self.model,
            prepared.contract,
            samples,
            prepared.accelerator,
            difficulty,
        )

    def __call__(self) -> float:
        return float(self.phase.epoch(LATE)["train"]["total"])

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """As a run computes."""
        return devices.computing(self.config, self.phase.accelerator.device)

    def shares(self) -> dict[str, float]:
        """Parts of the wall time of an epoch."""
        clock, accelerator, protocol = Clock("cpu"), self.phase.accelerator, self.phase.protocol
        with (
            patch.object(loop, "feed", lambda *a: clock.each("waiting", feed(*a))),
            patch.object(protocol, "step", clock.timed("forward", protocol.step)),
            patch.object(accelerator, "backward", clock.timed("backward", accelerator.backward)),
        ):
            clock.timed("whole", self)()
        whole = clock.spent["whole"]
        return {part: clock.spent[part] / whole for part in PARTS}


class TheirEpochs:
    """The same of the authors' loop, from the weights that ours have now."""

    def __init__(self, ours: Epochs):
        self.loop: Loop = loop_of(ours.phase)
        self.model = self.loop.model

    def __call__(self) -> float:
        return self.loop.epoch(LATE)


def _without_dropout(ours: Epochs, authors: TheirEpochs) -> tuple[dict[str, float], float]:
    """The mean losses of an epoch of both, and the seconds of the authors'."""
    found = {}
    with no_dropout(ours.model), no_dropout(authors.model):
        with ours.computing():
            found["ours"] = ours()
        began = time.perf_counter()
        found["authors"] = authors()
        return found, time.perf_counter() - began


@contextlib.contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    layers: list[tuple[Any, str]] = [(m, "p") for m in model.modules() if isinstance(m, nn.Dropout)]
    layers += [(m, "dropout") for m in model.modules() if isinstance(m, nn.RNNBase)]
    before = [getattr(*layer) for layer in layers]
    for layer in layers:
        setattr(*layer, 0.0)
    try:
        yield
    finally:
        for layer, rate in zip(layers, before, strict=True):
            setattr(*layer, rate)


def markdown(found: dict[str, Any]) -> str:
    """A row per recipe."""
    rows = []
    for name, row in found["recipes"].items():
        shares, ways, losses = row["step_shares"], row["ways"], row["mean_losses"]
        difference = abs(losses["ours"] - losses["authors"]) / abs(losses["authors"])
        rows.append(
            (
                name,
                row["rounds"],
                *(f"{ways[way]['cpu_s']:.2f}" for way in (AUTHORS, OURS)),
                f"**{output.spread(ways[OURS]['times_authors'])}**",
                f"{difference:.0e}",
                *(f"{shares[part]:.0%}" for part in PARTS),
                f"{1 - sum(shares.values()):.0%}",
                *(output.spread(ways[way]["times"]) if way in ways else "–" for way in list(WAYS)[1:]),
            )
        )
    head = ("recipe", "rounds", "authors, CPU s", "ours, CPU s", "times faster", "losses differ", *PARTS, "the rest")
    left_out = [(name, *pair) for name, row in found["recipes"].items() for pair in row.get("left_out", {}).items()]
    page = "\n".join(
        [
            *output.head("Training on one thread", found, 1),
            "Epochs of synthetic data as wide as the real ones, networks and batches as published, encoders with "
            "random weights. The authors' loop is written again from their public code, with the same weights: items "
            "padded when a step asks for them, networks in their form, PyTorch's optimisers. CPU time, interleaved, "
            "each way in a process of its own and after an epoch that is not timed. "
            "`losses differ`: the mean losses of a first epoch without dropout, relative. Parts of the time of an "
            "epoch of ours; the rest is the optimiser, clipping and what is random. The last columns are times faster "
            "than ours as it is: below 1 is slower.",
            "",
            *table((*head, *list(WAYS)[1:]), rows),
            "",
            *(f"- {name}, {way}: not run: {why}" for name, way, why in left_out),
        ]
    )
    return page.rstrip() + "\n"


if __name__ == "__main__":
    main()
