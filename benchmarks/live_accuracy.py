"""What answering at once costs a model: metrics of the first answer to each utterance beside those of whole dialogues.

    python3 -m benchmarks.live_accuracy RUN [RUN ...] --data DIR [--split test] [--window 4] [--out FILE.json]

Every dialogue of a split is said utterance by utterance, and the answer that each gets at once counts (`at once`; with
`--window` that of the last utterances alone too); `afterwards` are the answers when the dialogue is over, as `mer eval`
counts them. Runs in one folder, as `mer experiment` leaves the seeds of a model, are one row: mean and deviation.
PyTorch, one thread. Prints a Markdown table; `--out` also keeps it for `benchmarks.tables`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import output
from benchmarks.kept import KeptTable
from mer_export.bundle import Bundle, write_atomic
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.dialogues import Dialogue
from mer_export.data.formats.format import known_formats
from mer_export.data.labels import LabelReader
from mer_export.data.open import detect
from mer_export.data.shapes.shape import SHAPES
from mer_export.data.spec import DataSpec
from mer_export.metrics.measure import measure
from runtimes.backends.session import SessionOptions
from runtimes.predict.live import Heard, Hearing
from runtimes.predict.predictor import Predictor

SHOWN = ("accuracy", "weighted_f1")


def main(arguments: list[str] | None = None) -> None:
    """Prints the metrics of each bundle."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.live_accuracy", description="first answers")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--window", type=int)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)

    def run() -> None:
        runs: dict[tuple[str, str], list[dict[str, float]]] = {}
        for path in chosen.runs:
            for name, metrics in measured(path, chosen.data, chosen.split, chosen.window).items():
                runs.setdefault((path.parent.name, name), []).append(metrics)
        found = KeptTable(
            command="python3 -m benchmarks.live_accuracy RUNS --data DIR",
            caption=f"Split {chosen.split}; mean ± deviation over runs.",
            header=("model", "answers", "runs", *SHOWN),
            rows=tuple(
                (*key, str(len(own)), *(_spread([o[m] for o in own]) for m in SHOWN)) for key, own in runs.items()
            ),
        )
        print("\n".join(found.lines()))
        if chosen.out:
            write_atomic(chosen.out, found.model_dump_json(indent=1).encode())

    output.end_well(run)


def _spread(values: list[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def measured(path: Path, data: Path, split: str, window: int | None) -> dict[str, dict[str, float]]:
    """Metrics in percent of the answers that come afterwards, at once, and at once with a window."""
    bundle = Bundle.open(path)
    spec = bundle_spec(bundle, data)
    dialogues = list(_dialogues(data, spec, split))
    with Predictor(bundle, "torch", SessionOptions(threads=1)) as predictor:
        labels = LabelReader(str(data), predictor.task.labels, spec.label_columns or spec.label_names)
        whole = [s for d in dialogues for s in SHAPES[spec.shape](d, spec, labels)]
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
