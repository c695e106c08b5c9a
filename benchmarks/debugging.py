"""What `mer debug parity` takes on networks of published size, and whether it finds what is wrong.

    python3 -m benchmarks.debugging --out benchmarks/results [--network tab_iemocap] [--places 3]

In the ONNX file of a network's longest bucket what one product gives is made a hundredth larger, at so many places from
its beginning to its end, one at a time; a tenth or twice as large where random weights hide less from the outputs. Each
command runs in a process of its own, so that its peak memory is known, on one item of the longest lengths. Random
weights. Writes `debugging.json` and `debugging.md`; networks that are measured again replace those of an earlier run on
this processor.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from benchmarks.environments import only
from benchmarks.suite import NETWORKS, random_bundle, random_samples
from mer_export.agreement.policy import RULES
from mer_export.bundle import WEIGHTS, Bundle, Variant
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.errors import NotAvailableError
from mer_export.exporters import export_variant
from mer_export.exporters.graph.names import module_of
from mer_export.exporters.precision_gate import open_file, run_file
from mer_export.markdown import table

SHOWN = ("emt_mosi", "tab_iemocap", "facialmmt_fusion")
"""The networks whose encoder is a large one."""
FACTORS = (1.01, 1.1, 2.0)
"""How much larger a product becomes: the first that the outputs show."""
MIB = 2**20
Json = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite, or as a child one command of it."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.debugging", description="cost of mer debug parity")
    parser.add_argument("--out", type=Path, help="directory of the results")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help=f"default: {', '.join(SHOWN)}")
    parser.add_argument("--places", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)

    def run() -> None:
        if chosen.only:
            print(json.dumps(debug_here(**json.loads(chosen.only))))
            return
        line = output.command("debugging", arguments)
        networks = output.Entries(chosen.out, "debugging", "networks", line, markdown)
        for name in chosen.network or SHOWN:
            networks.add(name, measure(name, chosen.places))

    if chosen.out is None and not chosen.only:
        parser.error("--out is needed")
    output.end_well(run)


def measure(name: str, places: int) -> Json:
    """Exports a network, and debugs copies of the file with something wrong."""
    network = NETWORKS[name]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / name
        bundle = random_bundle(root, network)
        output.say(f"{name}: exporting")
        variant = export_variant(bundle, "onnx", network.buckets[-1])
        sound, found = bundle.variant_files(variant), []
        kept = shutil.copyfile(sound, Path(folder) / "sound.onnx")
        sample = _sample(bundle, name)
        exact = _answers(bundle, variant, sound, sample)
        for place in range(places):
            for factor in FACTORS:
                module = planted(bundle, variant, kept, (place + 0.5) / places, factor)
                if not _same(exact, _answers(bundle, variant, bundle.variant_files(variant), sample)):
                    break
            output.say(f"{name}: {module} x {factor}")
            found.append({"planted": module, "factor": factor} | _child(root, name, variant.name))
        return {
            "bucket": network.buckets[-1].name,
            "weights_mib": round(bundle.path(WEIGHTS).stat().st_size / MIB),
            "found": found,
        }


def _sample(bundle: Bundle, network: str) -> Sample:
    """An item of the longest lengths."""
    sizes = {d: (longest, longest) for d, (_, longest) in NETWORKS[network].lengths.items()}
    return random_samples(bundle.manifest.contract, sizes, 1)[0]


def _answers(bundle: Bundle, variant: Variant, path: Path, sample: Sample) -> dict[str, np.ndarray]:
    contract = bundle.manifest.contract
    return run_file(open_file(path), contract, collate([sample], contract, variant.lengths), variant.batch)


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether a difference is nothing that fp32 is judged by."""
    rule = RULES["fp32"]
    return all(np.abs(a - other[n]).max() <= rule.atol + rule.rtol * np.abs(a).max() for n, a in one.items())


def planted(bundle: Bundle, variant: Variant, sound: Path, place: float, factor: float) -> str:
    """Makes what a product gives so many times as large in the variant's file; returns the module."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_model(sound, load_external_data=False)
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and module_of(n.name)]
    node = products[int(place * len(products))]
    module = str(module_of(node.name))
    given, node.output[0] = node.output[0], f"{node.output[0]}.exact"
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    larger = helper.make_node("Mul", [node.output[0], "factor"], [given], name=f"{module}/Mul_planted")
    model.graph.node.insert(list(model.graph.node).index(node) + 1, larger)
    with bundle.commit() as change:
        onnx.save_model(model, change.file(variant.model))
    return module


def _child(root: Path, network: str, variant: str) -> Json:
    try:
        return only("debugging", {"root": str(root), "network": network, "variant": variant})
    except NotAvailableError as error:
        return {"failed": str(error)}


def debug_here(root: str, network: str, variant: str) -> Json:
    """The command, in this process."""
    from runtimes.debug.parity import debug_parity

    bundle = Bundle.open(root)
    report = debug_parity(bundle, variant, [_sample(bundle, network)])
    return {
        "found": report.module,
        "verdict": report.verdict,
        "modules": len(report.rows),
        "seconds": report.seconds,
        "peak_mib": report.peak_mib,
    }


def markdown(found: Json) -> str:
    """The results as one table."""
    rows, right, counted = [], 0, 0
    for name, network in found["networks"].items():
        for one in network["found"]:
            counted, right = counted + 1, right + (one["planted"] == one.get("found"))
            said = one.get("failed") or ("the same" if one["planted"] == one["found"] else one["found"] or "nothing")
            cost = (one["modules"], f"{one['seconds']:.0f}", one["peak_mib"]) if "failed" not in one else ("–",) * 3
            larger = f"{one.get('factor', FACTORS[0]):g}"
            rows.append((name, network["bucket"], network["weights_mib"], one["planted"], larger, said, *cost))
    header = (
        "network",
        "bucket",
        "weights, MiB",
        "planted in",
        "times as large",
        "named",
        "modules",
        "seconds",
        "peak MiB",
    )
    return "\n".join(
        [
            *output.head("What `mer debug parity` takes", found),
            f"**{right} of {counted}** faults are named in their module.",
            "",
            *table(header, rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
