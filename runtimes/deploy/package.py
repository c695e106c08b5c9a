"""Writes a folder that an image is built from: Dockerfile, pinned requirements, our own code, and maybe the bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mer_export.bundle import MANIFEST, WEIGHTS, Bundle
from mer_export.bundle.files import replacing_folder
from mer_export.bundle.manifest import seal
from mer_export.encoders.attached import variant_names
from mer_export.errors import UsageError
from mer_export.launcher import OWN, ROOT
from runtimes.deploy.container import BUNDLE, CODE, REQUIREMENTS, dockerfile
from runtimes.deploy.kserve import Deployment, inference_service
from runtimes.deploy.needs import Needs
from runtimes.deploy.requirements import pinned

DOCKERFILE, SERVICE = "Dockerfile", "inferenceservice.yaml"
WRITTEN = frozenset({DOCKERFILE, SERVICE, REQUIREMENTS, CODE, BUNDLE})
SOURCES = (".py", ".html", ".yaml")
UNSERVED = ("train/", "samples/", "variants/")
"""Parts of a bundle that serving reads nothing of, or not all of."""


@dataclass(frozen=True)
class Package:
    """A folder as it is to be: for which bundle and cluster, what that needs, and whether the image has the bundle."""

    bundle: Bundle
    needs: Needs
    deployment: Deployment
    baked: bool

    def write(self, out: Path, force: bool = False) -> list[str]:
        """Writes the folder as a whole; returns the names in it.

        Raises:
            UsageError: `out` is there and is not to be replaced, or holds what no package does.
            NotAvailableError: a package that the image needs is not installed here.
        """
        check_out(out, force)
        versions = pinned(self.needs.extras)
        with replacing_folder(out, durable=False) as fresh:
            (fresh / REQUIREMENTS).write_text("".join(f"{n}=={v}\n" for n, v in versions.items()))
            (fresh / DOCKERFILE).write_text(dockerfile(self.deployment.serving, self.baked))
            (fresh / SERVICE).write_text(inference_service(self.deployment))
            for source in own_sources():
                _copy(source, fresh / CODE / source.relative_to(ROOT))
            if self.baked:
                copy_served(self.bundle, self.needs, fresh / BUNDLE)
            _readable(fresh)
        return sorted(p.name for p in out.iterdir())


def check_out(out: Path, force: bool) -> None:
    """Raises UsageError where no package can be written to `out`."""
    if not out.exists():
        return
    if not out.is_dir() or {p.name for p in out.iterdir()} - WRITTEN:
        raise UsageError(f"{out} holds what mer package did not write: choose another --out")
    if any(out.iterdir()) and not force:
        raise UsageError(f"{out} exists: pass --force to replace it")


def own_sources() -> Iterator[Path]:
    """The files of this project that run it, wherever they are installed."""
    for name in sorted(OWN):
        folder = ROOT / name
        found = folder.rglob("*") if folder.is_dir() else [ROOT / f"{name}.py"]
        yield from sorted(p for p in found if p.suffix in SOURCES and p.is_file())


def copy_served(bundle: Bundle, needs: Needs, out: Path) -> None:
    """A copy of a bundle without what serving never reads: weights of PyTorch, training, samples, other variants."""
    manifest = bundle.manifest.model_copy(deep=True)
    manifest.variants = [v for v in manifest.variants if v in needs.variants]
    kept = {n for n in manifest.files if n != WEIGHTS and not n.startswith(UNSERVED)}
    kept |= {n for v in manifest.variants for n in variant_names(bundle, v)}
    manifest.files = {n: e for n, e in manifest.files.items() if n in kept}
    with bundle.reading():
        for name in manifest.files:
            _copy(bundle.path(name), out / name)
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).write_bytes(seal(manifest))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _readable(folder: Path) -> None:
    """An image keeps the rights of files, and its server is another user."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
