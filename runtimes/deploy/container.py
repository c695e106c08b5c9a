"""The image that serves a bundle, as the instructions of a Dockerfile."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mer_export.install import DISTRIBUTION

APP, MODELS = "/app", "/models"
TOKEN = "/run/secrets/mer/token"
"""Where a server reads the word that requests have to send."""
USER = 10001
"""Nobody's number: the server writes nothing outside its temporary folder."""
PORT = 8080
CODE, BUNDLE, REQUIREMENTS = "app", "bundle", "requirements.txt"
"""Beside the Dockerfile."""


@dataclass(frozen=True)
class Instruction:
    """One line: words as they stand, and behind them a command in the form that no shell reads."""

    name: str
    words: str = ""
    command: Sequence[str] = ()

    def __str__(self) -> str:
        return " ".join(filter(None, [self.name, self.words, json.dumps(list(self.command)) if self.command else ""]))


@dataclass(frozen=True)
class Serving:
    """How `mer serve` is started in the container: one model, one thread for each of its sessions."""

    model: str
    runtime: str
    precision: str
    workers: int
    token: bool

    @property
    def folder(self) -> str:
        """Where the bundle lies; its last part is what the model is called."""
        return f"{MODELS}/{self.model}"

    @property
    def entry(self) -> list[str]:
        """The words that do not change."""
        return ["python", "-P", f"{APP}/mer_export/launcher.py", "cli", "serve", self.folder]

    @property
    def options(self) -> list[str]:
        """The options of the command."""
        who = ["--token-file", TOKEN] if self.token else ["--no-token"]
        sessions = ["--workers", str(self.workers), "--threads", "1"]
        how = ["--runtime", self.runtime, "--precision", self.precision]
        return ["--host", "0.0.0.0", "--port", str(PORT), *who, *how, *sessions]


def dockerfile(serving: Serving, baked: bool) -> str:
    """The file, a comment and its instructions."""
    lines = [
        f"# {DISTRIBUTION}: serves {serving.model}, written by mer package",
        *map(str, _instructions(serving, baked)),
    ]
    return "\n".join(lines) + "\n"


def _instructions(serving: Serving, baked: bool) -> Iterator[Instruction]:
    # The versions are those of this interpreter's packages.
    yield Instruction("FROM", f"python:{sys.version_info.major}.{sys.version_info.minor}-slim")
    yield Instruction("ENV", "PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp")
    yield Instruction("WORKDIR", APP)
    yield Instruction("COPY", f"{REQUIREMENTS} ./")
    install = ("pip", "install", "--no-cache-dir", "--no-deps", "--requirement", REQUIREMENTS)
    yield Instruction("RUN", command=install)
    yield Instruction("COPY", f"{CODE}/ ./")
    yield Instruction("RUN", command=("python", "-m", "compileall", "-q", "."))
    if baked:
        yield Instruction("COPY", f"{BUNDLE}/ {serving.folder}/")
    yield Instruction("USER", f"{USER}:{USER}")
    yield Instruction("EXPOSE", str(PORT))
    yield Instruction("STOPSIGNAL", "SIGTERM")
    yield Instruction("HEALTHCHECK", "--interval=10s --timeout=5s --start-period=60s CMD", ask_whether_ready())
    yield Instruction("ENTRYPOINT", command=serving.entry)
    yield Instruction("CMD", command=serving.options)


def ask_whether_ready() -> list[str]:
    """A command that ends well where the server takes requests."""
    asked = f"http://127.0.0.1:{PORT}/v2/health/ready"
    return ["python", "-c", f"from urllib.request import urlopen; urlopen({asked!r}, timeout=4)"]
