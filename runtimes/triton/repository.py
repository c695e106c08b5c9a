"""How a repository comes to the disk: whole or not at all, and over nothing that is not ours."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path, PurePosixPath

from mer_export import __version__
from mer_export.bundle import Bundle, Variant
from mer_export.bundle.files import plain_files, replacing_folder, sha256
from mer_export.errors import BundleError, InputError, NotAvailableError, UsageError
from mer_export.install import not_installed
from mer_export.untrusted.json_files import read_json_object
from mer_export.untrusted.onnx_files import data_files
from runtimes.triton import config as configs
from runtimes.triton.config import ENGINES, VERSION
from runtimes.triton.plan import Repository

MARK = "mer-triton.json"
"""Says what was written, with the SHA-256 of each file; Triton reads directories alone."""
CONFIG = "config.pbtxt"


def write(repository: Repository, out: Path, force: bool = False) -> None:
    """Writes a repository, whole or not at all.

    Args:
        repository: what to write.
        out: a new directory; with `force` also one that this function wrote, unchanged.
        force: replace it.

    Raises:
        UsageError: there is something that was not written here, or was changed since.
        BundleError: a file of the bundle that is damaged.
        NotAvailableError: a package that files are made with is not installed.
    """
    place = out.resolve()
    _require_free(repository.bundle, out, place, force)
    with replacing_folder(place) as fresh:
        _fill(repository, fresh)


def _require_free(bundle: Bundle, out: Path, place: Path, force: bool) -> None:
    if bundle.root.resolve() in (place, *place.parents):
        raise UsageError(f"--out {out} is in the bundle, which holds its own files alone: choose another place")
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    if not place.is_dir():
        raise UsageError(f"--out {out} is a file: choose a directory")
    if not force:
        raise UsageError(f"{out} exists: pass --force to replace it")
    try:
        written = read_json_object(place / MARK)["files"]
    except (OSError, InputError, KeyError):
        written = None
    if not isinstance(written, dict):
        raise UsageError(f"{out} was not written by mer triton: remove it, or choose another --out")
    for file in (p for p in place.rglob("*") if p.is_symlink() or not p.is_dir()):
        name = file.relative_to(place).as_posix()
        if name != MARK and (file.is_symlink() or name not in written or sha256(file) != written[name]):
            raise UsageError(
                f"{out}: {name} was changed or added since: save it, remove {out}, or choose another --out"
            )


def _fill(repository: Repository, fresh: Path) -> None:
    """Writes everything."""
    for model in repository.models:
        folder = fresh / model.name
        (folder / VERSION).mkdir(parents=True)
        contents = {CONFIG: configs.text(model.config), **model.files}
        for name, content in contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        if model.variant is not None:
            with repository.bundle.reading():
                _put_network(repository, model.variant, folder / VERSION, fresh)
    files = {f.relative_to(fresh).as_posix(): sha256(f) for f in sorted(plain_files(fresh))}
    mark = {"written_by": f"mer {__version__}", **repository.about, "files": files}
    (fresh / MARK).write_text(json.dumps(mark, indent=1), encoding="utf-8")


def _put_network(repository: Repository, variant: Variant, folder: Path, fresh: Path) -> None:
    """The file that a model loads, and the data files that it reads."""
    bundle, engine = repository.bundle, repository.engine
    model = bundle.variant_files(variant)
    if engine is ENGINES["openvino"]:
        return _to_ir(model, folder / engine.file)
    _copy(bundle, variant.model, folder / engine.file, fresh)
    if variant.format == "onnx":
        for name in data_files(model):
            _copy(bundle, str(PurePosixPath(variant.model).with_name(name)), folder / name, fresh)
    return None


def _copy(bundle: Bundle, name: str, to: Path, fresh: Path) -> None:
    """A file of the bundle as its manifest has it; weights that are here already become one more name of them."""
    entry = bundle.manifest.files.get(name)
    if entry is None or to.parent != to.resolve().parent:
        raise BundleError(f"{bundle.root}: {name} is no file of this bundle beside its model: export it again")
    for there in fresh.glob(f"*/{VERSION}/{to.name}"):
        if there.stat().st_size == entry.size and sha256(there) == entry.sha256:
            try:
                os.link(there, to)
                return
            except OSError:
                break
    shutil.copyfile(bundle.path(name), to)
    if sha256(to) != entry.sha256:
        raise BundleError(f"{bundle.root}: {name} changed while it was copied: try again")


def _to_ir(model: Path, to: Path) -> None:
    """OpenVINO's own form of an ONNX file, with the recurrent layers that its plugin computes right.

    Raises:
        NotAvailableError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise NotAvailableError(not_installed("openvino", "openvino")) from None
    from runtimes.backends.openvino.rnn import unroll_by_length

    graph = openvino.Core().read_model(str(model))
    unroll_by_length(graph)
    openvino.save_model(graph, str(to), compress_to_fp16=False)
