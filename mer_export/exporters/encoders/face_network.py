"""An encoder of faces from a bundle of FacialMMT that has a face network, trained or imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mer_export.bundle import WEIGHTS, Bundle
from mer_export.encoders.encoder import manifest_of
from mer_export.encoders.swin import SYSTEM
from mer_export.encoders.swin.config import FEATURES
from mer_export.errors import UnsupportedError
from mer_export.weights import bundle_model, save_weights


def import_face_network(
    source: Path, out: Path, output: str = "features", unit: bool = False, force: bool = False, **words: str
) -> Bundle:
    """Writes the bundle of an encoder: configuration and weights in float32; no variant yet.

    Args:
        source: a bundle of `facialmmt`, of variant `face` or `end_to_end`.
        out: the new bundle.
        output: `features`, or the logits of the `expressions`.
        unit: bring vectors to unit length.
        force: replace an existing bundle.
        words: name, revision and licence.

    Raises:
        BundleError: no bundle, or a damaged one.
        UnsupportedError: a bundle without a face network.
        UsageError: no such output, or `out` holds a bundle.
    """
    opened = Bundle.open(source)
    manifest = opened.manifest
    shape: Any = manifest.config.get("swin")
    if manifest.system != "facialmmt" or shape is None:
        raise UnsupportedError(
            f"{source} ({manifest.system} {manifest.variant}) has no face network: give a bundle of facialmmt of "
            "variant face or end_to_end"
        )
    count = manifest.config["expressions"]
    config = SYSTEM.parse(
        {
            "swin": shape,
            "expressions": count,
            "output": output,
            "input": {"height": shape["image_size"], "width": shape["image_size"]},
            "width": FEATURES if output == "features" else count,
            "unit": unit,
            "source": {"name": source.resolve().name, "sha256": manifest.weights.sha256} | words,
        }
    )
    model, whole = SYSTEM.build(config), bundle_model(opened)
    state = whole.state_dict() if manifest.variant == "face" else whole.get_submodule("face").state_dict()
    model.get_submodule("face").load_state_dict(state)
    bundle = Bundle.create(out, manifest_of(SYSTEM, config), force)
    with bundle.commit() as change:
        save_weights(model, change.file(WEIGHTS))
    return bundle
