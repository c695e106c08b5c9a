"""What answering at once costs a model: metrics of the first answer to each utterance beside those of whole dialogues.

    mer experiment sample/mosi_live --data mosi_utt --out runs/mosi_live
    python3 -m benchmarks.live_accuracy runs/mosi_live --data mosi_utt --out runs/mosi_said [--window 4]
    python3 -m benchmarks.tables sample/mosi_live=runs/mosi_said

Every dialogue of the experiment's split is said to each of its bundles utterance by utterance, and the answer that each
utterance gets at once counts (`at once`; with `--window` that of the last ones alone too); `afterwards` are the answers
when the dialogue is over, as `mer eval` counts them. PyTorch, one thread. Writes the experiment's table of these rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import output
from mer_export.bundle import Bundle
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.dialogues import Dialogue
from mer_export.data.formats.format import known_formats
from mer_export.data.labels import LabelReader
from mer_export.data.open import detect
from mer_export.data.shapes.shape import find_shape
from mer_export.data.spec import DataSpec
from mer_export.experiment import RESULT, ExperimentResult
from mer_export.metrics import find
from mer_export.metrics.measure import measure
from runtimes.backends.session import SessionOptions
from runtimes.predict.live import Heard, Hearing
from runtimes.predict.predictor import Predictor


def main(arguments: list[str] | None = None) -> None:
    """Measures the bundles of an experiment."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.live_accuracy", description="first answers")
    parser.add_argument("runs", type=Path, metavar="RUNS", help="directory of a finished experiment")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="directory of the table")
    parser.add_argument("--window", type=int)
    chosen = parser.parse_args(arguments)

    def run() -> None:
        found = said(chosen.runs, chosen.data, chosen.window)
        chosen.out.mkdir(parents=True, exist_ok=True)
        found.save(chosen.out)

    output.end_well(run)


def said(runs: Path, data: Path, window: int | None) -> ExperimentResult:
    """An experiment's result with an axis `answers`: those that come afterwards, at once, and at once with a window."""
    result = ExperimentResult.model_validate_json((runs / f"{RESULT}.json").read_bytes())
    result.refuse_gaps()
    cells = []
    for trained in result.trained:
        output.say(f"{trained.model} {trained.bundle}")
        for name, metrics in measured(runs / trained.bundle, data, result.table.split, window).items():
            own = {
                "cell": trained.cell | {"answers": name},
                "metrics": {n: find(n).rounded(metrics[n]) for n in result.table.metrics},
            }
            cells.append(trained.model_copy(update=own))
    return result.model_copy(update={"trained": cells})


def measured(path: Path, data: Path, split: str, window: int | None) -> dict[str, dict[str, float]]:
    """Metrics in percent of each kind of answers."""
    bundle = Bundle.open(path)
    spec = bundle_spec(bundle, data)
    dialogues = list(_dialogues(data, spec, split))
    with Predictor(bundle, "torch", SessionOptions(threads=1)) as predictor:
        labels = LabelReader(str(data), predictor.task.labels, spec.label_columns or spec.label_names)
        whole = [s for d in dialogues for s in find_shape(spec.shape)(d, spec, labels)]
        gold = np.concatenate([s.labels for s in whole if s.labels is not None])
        found = {"afterwards": np.concatenate(predictor.scores(whole))}
        for limit in dict.fromkeys((None, window)):
            hearing = Hearing(bundle, predictor.task.labels, limit, revise=0, spec=spec)
            name = "at once" if limit is None else f"at once, window {limit}"
            found[name] = np.stack([row for d in dialogues for row in _said(hearing, predictor, d)])
        return {name: measure(predictor.task, gold, scores) for name, scores in found.items()}


def _dialogues(data: Path, spec: DataSpec, split: str) -> Iterator[Dialogue]:
    reader = known_formats()[detect(data, spec)].load()
    yield from reader.source(data, spec).dialogues(split)


def _said(hearing: Hearing, predictor: Predictor, dialogue: Dialogue) -> Iterator[np.ndarray]:
    """The scores of each utterance when it is said."""
    heard = Heard(dialogue.id)
    for utterance in dialogue.utterances:
        turn = hearing.say(heard, replace(utterance, label=None))
        heard = turn.after
        (sample,) = turn.samples
        (scores,) = predictor.scores([sample])
        yield scores[sample.units.index(turn.unit)]


if __name__ == "__main__":
    main()
