"""Encoders that a bundle takes along: each a bundle of its own in a folder of it, without what serving never reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from mer_export.bundle import Bundle, Commit, Variant
from mer_export.bundle.files import replacing_folder
from mer_export.bundle.manifest import MANIFEST, Manifest, seal
from mer_export.contract import Dim
from mer_export.data.spec import Extractor
from mer_export.encoders import FOLDER
from mer_export.encoders.encoder import FACES, TOKENIZER, Encoder
from mer_export.encoders.reading import check_together
from mer_export.errors import UsageError

Chosen = Mapping[str, Sequence[Encoder]]
"""Encoders by input; the features of several stand side by side."""


def named(words: Sequence[str], trust: bool = False) -> dict[str, list[Encoder]]:
    """`text=encoders/minilm`, or an input several times; raises UsageError for another form, BundleError as `open`."""
    found: dict[str, list[Encoder]] = {}
    for word in words:
        name, sign, folder = word.partition("=")
        if not sign or not name or not folder:
            raise UsageError(f"{word!r} names no encoder: write INPUT=FOLDER, such as text=encoders/minilm")
        found.setdefault(name, []).append(Encoder.open(folder, trust))
    return found


def together(encoders: Sequence[Encoder]) -> Extractor:
    """What data remember of features of several encoders side by side; of one it is its own identity."""
    own = [e.identity for e in encoders]
    if len(own) == 1:
        return own[0]
    return Extractor(
        name=" + ".join(e.name for e in own), sha256=sha256("".join(e.sha256 for e in own).encode()).hexdigest()
    )


def attach(bundle: Bundle, chosen: Chosen, force: bool = False) -> None:
    """Copies encoders into a bundle; those that it has already are left as they are, unless by `force`.

    Raises:
        UsageError: no such input, one that has encoders already, encoders of something else, or encoders that its
            training features are not of.
    """
    there = attached(bundle)
    fresh = {n: e for n, e in chosen.items() if force or n not in there or together(there[n]) != together(e)}
    check(bundle, fresh, force)
    if fresh:
        with bundle.commit() as change:
            keep(change, fresh)


def check(bundle: Bundle, chosen: Chosen, force: bool = False) -> None:
    """Raises UsageError as `attach`."""
    manifest = bundle.manifest
    known = {s.name: s for s in manifest.contract.features}
    for name, encoders in chosen.items():
        if name not in known:
            raise UsageError(f"{bundle.root} has no input {name!r}, its inputs are {list(known)}")
        if name in manifest.encoders and not force:
            raise UsageError(f"{bundle.root} has encoders for {name} already: pass --force to replace them")
        width, wanted = sum(e.config.width for e in encoders), known[name].dims[-1]
        if wanted != width:
            raise UsageError(f"{name} is {wanted} wide, {together(encoders).name} gives {width}: take another encoder")
        check_together(known[name].modality or name, encoders)
        vectors, stacked = encoders[0].config.vectors, _vectors(known[name].dims)
        if vectors != stacked:
            given = f"{together(encoders).name} gives {vectors}"
            raise UsageError(f"{name} has {stacked} vectors of an item, {given}: make one with --layer and --stack")
        said, own = manifest.features.get(name), together(encoders)
        if said and said.extractor != said.UNKNOWN and said.sha256 and said.sha256 != own.sha256:
            raise UsageError(
                f"{name} was extracted by {said.extractor} ({said.sha256[:12]}) for training, this is {own.name} "
                f"({own.sha256[:12]}): attach that one, or train on features of this one"
            )


def _vectors(dims: Sequence[Dim]) -> int:
    """How many vectors of an item an input stacks: (batch, vectors, length, width), of others one."""
    return dims[1] if len(dims) == 4 and isinstance(dims[1], int) else 1


def keep(change: Commit, chosen: Chosen) -> None:
    """Stages encoders of a bundle, and says which input each is for."""
    for name, encoders in chosen.items():
        for old in [n for n in change.manifest.files if n.startswith(f"{FOLDER}/{name}/")]:
            change.remove(old)
        places = [f"{FOLDER}/{name}/{i}" for i in range(len(encoders))]
        for place, encoder in zip(places, encoders, strict=True):
            copy(change, place, encoder.bundle)
        change.manifest.encoders[name] = places


def copy(change: Commit, place: str, bundle: Bundle) -> None:
    """Stages an encoder as a folder of another bundle."""
    manifest, served = _served(bundle)
    for name in served:
        shutil.copyfile(bundle.path(name), change.file(f"{place}/{name}"))
    change.write(f"{place}/{MANIFEST}", seal(manifest))


def _served(bundle: Bundle) -> tuple[Manifest, list[str]]:
    """An encoder without its weights, samples and reports, which only exporting and PyTorch read."""
    manifest = bundle.manifest.model_copy(deep=True)
    served = {n for v in manifest.variants for n in variant_names(bundle, v)}
    served |= {n for n in manifest.files if n.startswith((f"{TOKENIZER}/", f"{FACES}/"))}
    manifest.files = {n: e for n, e in manifest.files.items() if n in served}
    return manifest, sorted(served)


def place_beside(data: Path) -> Path:
    """Where the encoders of a data set stand: `clips.encoders` beside `clips.parquet`."""
    return data.with_name(f"{data.stem}.{FOLDER}")


def save_beside(data: Path, chosen: Chosen) -> Path:
    """Keeps the encoders that a data set was made with beside it, for whoever trains on it; replaces others."""
    place = place_beside(data)
    with replacing_folder(place) as fresh:
        for name, encoders in chosen.items():
            for number, encoder in enumerate(encoders):
                _write(encoder.bundle, fresh / name / str(number))
    return place


def _write(bundle: Bundle, folder: Path) -> None:
    """An encoder as a folder of its own."""
    manifest, served = _served(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    for file in served:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(file), folder / file)
    (folder / MANIFEST).write_bytes(seal(manifest))


def found_beside(data: Path, said: Mapping[str, Extractor]) -> dict[str, list[Encoder]]:
    """The encoders beside a data set that its features are of, by input.

    Args:
        data: the data set.
        said: what it says of its features.

    Raises:
        BundleError: one of them is damaged.
    """
    found: dict[str, list[Encoder]] = {}
    for folder in sorted(p for p in place_beside(data).glob("*") if p.is_dir()):
        numbered = sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
        encoders = [Encoder.open(p) for p in numbered]
        if encoders and folder.name in said and together(encoders).sha256 == said[folder.name].sha256:
            found[folder.name] = encoders
    return found


def variant_names(bundle: Bundle, variant: Variant) -> list[str]:
    """The files that a variant is made of: its own, its models, and what stands beside those."""
    folders = {f"variants/{variant.name}/", *(m.rpartition("/")[0] + "/" for m in variant.models)}
    return [n for n in bundle.manifest.files if any(n.startswith(f) for f in folders)]


def attached(bundle: Bundle) -> dict[str, list[Encoder]]:
    """The encoders of a bundle by input, opened from its own folder.

    Raises:
        BundleError: one of them is damaged.
    """
    found: dict[str, list[Encoder]] = {}
    for name, places in bundle.manifest.encoders.items():
        for place in places:
            # Its manifest is a file of the bundle: what that says of it holds, and it of its own files.
            bundle.path(f"{place}/{MANIFEST}")
        found[name] = [Encoder.open(bundle.folder(place), bundle.trust) for place in places]
    return found
