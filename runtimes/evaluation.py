"""`mer eval`: bundles opened beside labelled data, and what each of its forms measures on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mer_export.bundle import Bundle
from mer_export.contract import Lengths
from mer_export.data.bundle_data import AUTO, bundle_corpus, bundle_samples
from mer_export.data.samples import Sample
from mer_export.metrics.tally import ClassTable
from mer_export.terminal import columns
from runtimes.pages.evaluation import metric_rows, remarks
from runtimes.pipeline import How, Say, silent
from runtimes.predict.comparison import Comparison, Contender, class_lines, compare, naming
from runtimes.predict.evaluate import Answers, answers, evaluate
from runtimes.predict.predictor import Predictor
from runtimes.predict.preview import preview


class Opened(NamedTuple):
    """A bundle that answers, the samples of its split, and the lengths of the padded arrays they came from, if any."""

    predictor: Predictor
    samples: Sequence[Sample]
    arrays: Lengths | None = None


@dataclass(frozen=True)
class Labelled:
    """Labelled data and how bundles answer them, as the command line says it."""

    how: How
    data: Path
    data_format: str = AUTO
    split: str = "test"
    outside: Sequence[Path] | None = None
    sets: Sequence[str] = ()
    say: Say = silent

    def opened(self, path: Path) -> Opened:
        """Opens a bundle and reads the split as it asks, through its encoders if it has any."""
        bundle = Bundle.open(path, self.how.trust)
        predictor = self.how.predictor(bundle, self.say)
        named = [n for table in (self.how.shared or {}).values() for n in table]
        asked = (bundle, self.data, self.data_format)
        with self.how.encoders(bundle, self.say) or nullcontext() as through:
            if through is not None:
                read = bundle_samples(*asked, self.split, self.outside, through, self.sets, named)
                return Opened(predictor, read)
            corpus = bundle_corpus(*asked, self.sets, named, self.outside)
            return Opened(predictor, corpus.split(self.split), corpus.info.get("arrays", {}).get(self.split))

    def previewed(self, path: Path) -> dict[str, Any]:
        """What an evaluation of a bundle would do; raises as `preview`."""
        predictor, samples, _ = self.opened(path)
        with predictor:
            return preview(predictor, samples)

    def compared(self, paths: Iterable[Path], rounds: int, seed: int) -> Comparison:
        """Bundles side by side, each beside the first; raises as `compare`."""
        sides = []
        for path in paths:
            with naming(str(path)):
                sides.append(_contender(self.opened(path), str(path)))
        return compare(sides, str(self.data), self.split, rounds, seed)


def measured(predictor: Predictor, samples: Sequence[Sample]) -> dict[str, Any]:
    """What one bundle measures in single semantics, as `mer eval --json` says it."""
    found = evaluate(predictor, samples)
    summary = {"variants": predictor.answered_by, **found.counts, **predictor.features.summary()}
    return {"metrics": found.metrics, "classes": dumped(found.classes), "precision": predictor.precision, **summary}


def dumped(tables: Iterable[ClassTable]) -> list[dict[str, Any]]:
    """Tables of classes as JSON says them."""
    return [t.model_dump(mode="json") for t in tables]


def metric_lines(result: dict[str, Any]) -> list[str]:
    """The metrics in columns, each label's numbers, and below them what they were measured on and with."""
    tables = [ClassTable.model_validate(t) for t in result["classes"]]
    return [*columns(("metric", "value"), metric_rows(result["metrics"])), *class_lines(tables), "", remarks(result)]


def _contender(opened: Opened, name: str) -> tuple[Contender, Answers]:
    predictor = opened.predictor
    with predictor:
        said = Contender(
            bundle=name,
            system=predictor.bundle.manifest.system,
            runtime=predictor.backend,
            precision=predictor.precision,
        )
        return said, answers(predictor, opened.samples)
