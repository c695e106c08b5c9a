"""The tools that a data section names for sentences and recordings, and where a bundle keeps them."""

from __future__ import annotations

from typing import Any

from mer_export.bundle import MANIFEST, Bundle, Commit
from mer_export.data.spec import DataSpec
from mer_export.data.tokens import tokenizer
from mer_export.encoders import FOLDER

PLACES = {"encoder": f"{FOLDER}/sentences", "speech": f"{FOLDER}/speech"}
"""By setting of `data.context`."""
EARLIER = {"encoder": "tokenizer/sentences", "speech": "tokenizer/speech"}
"""Where an earlier version kept them, in another form: whoever needs one is told so."""


def keep_tools(change: Commit, spec: DataSpec) -> None:
    """Copies tokenizers and encoders into a bundle, so that it takes transcripts and recordings wherever it is.

    Raises:
        InputError: a text tokenizer that cannot be read.
        BundleError: no encoder, or a damaged one.
    """
    from mer_export.encoders.attached import copy
    from mer_export.encoders.encoder import Encoder

    tokenizer.keep_tokenizer(change, spec)
    for part, place in PLACES.items():
        if folder := getattr(spec.context, part, None):
            copy(change, place, Encoder.open(folder).bundle)


def with_kept(spec: DataSpec, bundle: Bundle) -> DataSpec:
    """The data section with the tools that the bundle keeps; raises BundleError where a link lies among them."""
    spec = tokenizer.with_kept(spec, bundle)
    if spec.context is None:
        return spec
    kept: dict[str, Any] = {}
    for part, place in PLACES.items():
        if f"{place}/{MANIFEST}" in bundle.manifest.files:
            # Its manifest is a file of the bundle: what that says of it holds, and it of its own files.
            bundle.path(f"{place}/{MANIFEST}")
            kept[part] = str(bundle.folder(place))
        elif any(n.startswith(f"{EARLIER[part]}/") for n in bundle.manifest.files):
            kept[part] = str(bundle.root / EARLIER[part])
    return spec.model_copy(update={"context": spec.context.model_copy(update=kept)})
