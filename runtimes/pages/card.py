"""The model card of a bundle: `README.md` with the metadata that model hubs read, from what the bundle knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mer_export import registry
from mer_export.bundle import CONFIG, Bundle, Manifest
from mer_export.evaluation import Evaluation, read_evaluations
from mer_export.markdown import table
from mer_export.metrics import find
from mer_export.metrics.table import main
from runtimes.pages.report import TITLES, parity_state
from runtimes.parity.report import ParityReport, verdict_line
from runtimes.predict.comparison import class_page

CARD = "README.md"
LICENCES = ("mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0")
"""Those that a hub knows by name and that data sets of this field use; others are `other`, with their words."""
HUB_METRICS = {"weighted_f1": "f1", "macro_f1": "f1", "auc": "roc_auc", "mae": "mae", "corr": "pearsonr"}
"""What hubs call a metric; accuracies of every kind are `accuracy`."""
INTENDED = """\
Labels what is expressed in recordings and transcripts like those it was trained on, for research and for products whose
users know and agree. It says what a person expressed as annotators judged it, not what they feel. It has not been
examined across languages, cultures, ages, disabilities or microphones, and is not for decisions about a person: hiring,
schooling, policing, credit, health or the like."""


def write_card(bundle: Bundle, datasets: Sequence[str] = (), name: str | None = None) -> str:
    """Writes the card into the bundle, which lists it like every file; returns its text.

    Args:
        bundle: as it stands; the same bundle gives the same card.
        datasets: names of the training data on a hub, which no bundle knows.
        name: of the model; default as its directory is called.

    Raises:
        BundleError: a report of the bundle is damaged.
    """
    text = card(bundle, datasets, name)
    with bundle.commit() as change:
        change.write(CARD, text)
    return text


def card(bundle: Bundle, datasets: Sequence[str] = (), name: str | None = None) -> str:
    """The card's text."""
    manifest, system = bundle.manifest, registry.get(bundle.manifest.system)
    name = name or bundle.root.resolve().name
    found, parity = read_evaluations(bundle), ParityReport.load(bundle)
    metadata = yaml.safe_dump(_metadata(manifest, found, datasets, name), sort_keys=False, allow_unicode=True)
    facts = [
        ("System", f"{system.title} ({system.paper}), variant {manifest.variant}"),
        ("Task", f"{manifest.task.kind}, one answer per {manifest.task.unit}"),
        ("Labels", ", ".join(manifest.task.labels) or "–"),
        ("Modalities", ", ".join(manifest.contract.modalities) or "–"),
        ("Weights", f"SHA-256 `{manifest.weights.sha256}`"),
        ("Exported", ", ".join(sorted({f"{v.format} {v.precision}" for v in manifest.variants})) or "nothing yet"),
    ]
    sections = {
        "": [f"A bundle of `mer` (distribution `mer-export`): `mer infer {name} INPUT -o labels.jsonl`."],
        "Model": table(("", ""), facts),
        "Intended use": [INTENDED],
        "Training data": _data(manifest, bundle),
        "Encoders": _encoders(manifest, system),
        "Results": _results(found),
        "Parity": _parity(manifest, parity),
    }
    body = [f"# {name}"]
    for title, lines in sections.items():
        body += ["", *([f"## {title}", ""] if title else []), *lines]
    return f"---\n{metadata}---\n\n" + "\n".join(body) + "\n"


def _metadata(manifest: Manifest, found: Sequence[Evaluation], datasets: Sequence[str], name: str) -> dict[str, Any]:
    single = [e for e in found if e.semantics == "single"]
    metrics = dict.fromkeys(_hub_metric(n) for e in single for n in main(e.metrics))
    formats = sorted({v.format for v in manifest.variants})
    metadata: dict[str, Any] = {
        **_licence(str(manifest.provenance.get("licence", "unknown"))),
        "library_name": "mer-export",
        "tags": ["emotion-recognition", "multimodal", manifest.system, *manifest.contract.modalities, *formats],
        **({"datasets": list(datasets)} if datasets else {}),
        **({"metrics": list(metrics)} if metrics else {}),
    }
    if single:
        metadata["model-index"] = [{"name": name, "results": [_result(e, manifest, datasets) for e in single]}]
    return metadata


def _result(one: Evaluation, manifest: Manifest, datasets: Sequence[str]) -> dict[str, Any]:
    data = datasets[0] if datasets else str(manifest.provenance.get("data", {}).get("format", "own data"))
    return {
        "task": {"type": "emotion-recognition", "name": f"Emotion recognition ({manifest.task.kind})"},
        "dataset": {"type": data, "name": data, "split": one.split},
        "metrics": [
            {"type": _hub_metric(n), "name": find(n).title, "value": find(n).rounded(v)}
            for n, v in main(one.metrics).items()
            if v == v
        ],
    }


def _hub_metric(name: str) -> str:
    return HUB_METRICS.get(name, "accuracy")


def _licence(text: str) -> dict[str, str]:
    word = text.partition(":")[0].strip().lower()
    if word in (*LICENCES, "unknown"):
        return {"license": word}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:64]}


def _data(manifest: Manifest, bundle: Bundle) -> list[str]:
    made = manifest.provenance
    data: Mapping[str, Any] = made.get("data") or {}
    rows = [(n, str(s.get("items", "")), str(s.get("units", ""))) for n, s in (data.get("splits") or {}).items()]
    lines = [f"Licence of the training data: {made.get('licence', 'unknown: ask the owner of the training data')}."]
    if data:
        lines += ["", f"Format `{data.get('format')}`, fingerprint `{data.get('fingerprint')}`.", ""]
        lines += table(("split", "items", f"{manifest.task.unit}s"), rows)
    if "origin" in made:
        lines += ["", f"Weights: {made['origin']} `{made.get('file')}`, {made.get('source')}."]
    if CONFIG in bundle.manifest.files:
        lines += ["", f"The whole recipe is in `{CONFIG}`."]
    return lines


def _encoders(manifest: Manifest, system: registry.System) -> list[str]:
    rows = [
        (name, str(s.width), s.extractor, f"`{s.sha256[:16]}`" if s.sha256 else "–")
        for name, s in manifest.features.items()
    ]
    lines = table(("input", "width", "made by", "SHA-256"), rows) if rows else []
    carried = [f"`{folder}`" for folders in manifest.encoders.values() for folder in folders]
    lines += ["", f"In this bundle: {', '.join(carried)}."] if carried else []
    published = [f"* {modality}: {encoder}" for modality, encoder in system.encoders.items()]
    return [*lines, "", "The published features of this system:", "", *published]


def _results(found: Sequence[Evaluation]) -> list[str]:
    if not found:
        return ["Not measured when the weights were made: `mer eval BUNDLE --data DIR`."]
    names = list(dict.fromkeys(n for e in found for n in e.metrics if "/" not in n))
    rows = [(find(n).title, *(find(n).text(e.metrics[n]) if n in e.metrics else "–" for e in found)) for n in names]
    lines = table(("metric", *(f"{e.split}, {e.semantics}" for e in found)), rows)
    last = [e for e in found if e.classes][-1:]
    return [*lines, "", *(line for e in last for line in (f"Split {e.split}:", "", *class_page(e.classes)))]


def _parity(manifest: Manifest, parity: ParityReport | None) -> list[str]:
    state = parity_state(parity, manifest.weights.sha256)
    said = f"**{TITLES[state]}.**"
    if parity is None or state == "stale":
        return [f"{said} `mer parity BUNDLE --data DIR` compares every exported file with PyTorch."]
    since = parity.unchecked(manifest)
    rows = [
        (c.verdict, c.runtime, c.format, c.precision, c.lengths.name if c.lengths else "any")
        for c in parity.ran
        if c.variant not in since
    ]
    lines = [
        f"{said} {verdict_line(parity)}",
        "",
        *table(("verdict", "runtime", "format", "precision", "bucket"), rows),
    ]
    names = ", ".join(f"`{n}`" for n in since)
    return [*lines, "", f"Not compared, or exported anew since: {names}."] if since else lines
