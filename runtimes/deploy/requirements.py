"""The packages of an image, pinned to the versions that are installed here: what was tried here runs there."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mer_export.errors import NotAvailableError
from mer_export.install import DISTRIBUTION, Extra, not_installed
from mer_export.launcher import ROOT

LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
"""What markers see, whatever packs: images are Linux."""


def pinned(extras: Iterable[Extra], root: Path = ROOT) -> dict[str, str]:
    """Every distribution that the core and these extras take, and what those take, with its version, by name.

    Raises:
        NotAvailableError: one of them is not installed here.
    """
    found: dict[str, str] = {}
    waiting = [(r, extra) for extra in ("", *extras) for r in _declared(extra, root)]
    while waiting:
        wanted, extra = waiting.pop()
        name = canonicalize_name(wanted.name)
        for further in ("", *sorted(wanted.extras)):
            key = f"{name}[{further}]" if further else name
            if key in found:
                continue
            try:
                distribution = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                sentence = not_installed(name, extra) if extra else f"{name} is not installed"  # type: ignore[arg-type]
                raise NotAvailableError(f"{sentence}; an image gets the versions that are here") from None
            found[key] = distribution.version
            waiting += [(r, extra) for r in _asked(distribution.requires or (), further)]
    return dict(sorted((n, v) for n, v in found.items() if "[" not in n))


def _declared(extra: str, root: Path) -> list[Requirement]:
    """What this project asks for: of a clone as its pyproject.toml says, else as it was installed."""
    project = root / "pyproject.toml"
    if not project.exists():
        return [r for r in _asked(metadata.requires(DISTRIBUTION) or (), extra)]
    said: Mapping = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    return _asked(said["optional-dependencies"][extra] if extra else said["dependencies"], "")


def _asked(requires: Iterable[str], extra: str) -> list[Requirement]:
    """Those that hold on Linux, of the extra or without one."""
    asked = [Requirement(r) for r in requires]
    plain = [r for r in asked if r.marker is None or r.marker.evaluate(LINUX | {"extra": ""})]
    if not extra:
        return plain
    known = {str(r) for r in plain}
    return [
        r for r in asked if str(r) not in known and r.marker is not None and r.marker.evaluate(LINUX | {"extra": extra})
    ]
