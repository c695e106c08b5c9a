"""`mer card`, `push` and `pull`: a bundle among other people's models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mer_export.console import BundleArg, Force, Json, Quiet, Verbose, emit

Repo = Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub; HF_ENDPOINT names another hub.")]


def card(
    bundle: BundleArg,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", metavar="ID", help="Training data as the hub calls them; repeatable."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the model; default as its directory is called.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model card (README.md with metadata) into a bundle: results, data, licence, parity."""
    from mer_export.bundle import Bundle
    from runtimes.pages.card import CARD, write_card

    text = write_card(Bundle.open(bundle), dataset or (), name)
    emit({"bundle": str(bundle), "card": text}, as_json, lambda: [f"{bundle / CARD}: {len(text.splitlines())} lines"])


def push(
    bundle: BundleArg,
    repo: Repo,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str, typer.Option("--message", help="Of the commit.")] = "Bundle",
    as_json: Json = False,
) -> None:
    """Make a repository of a model hub hold a bundle, as huggingface_hub is logged in."""
    from mer_export.bundle import Bundle
    from runtimes.hub import push

    opened = Bundle.open(bundle)
    where = push(opened, repo, private, message)
    result = {"bundle": str(bundle), "repo": repo, "files": len(opened.manifest.files), "commit": where}
    emit(result, as_json, lambda: [f"{bundle}: {result['files']} files in {where}"])


def pull(
    repo: Repo,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The new bundle.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    force: Force = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fetch a bundle from a model hub; it is there when every checksum is right, and nothing of it has been run."""
    from mer_export.progress import progress_unless
    from runtimes.hub import pull

    bundle = pull(repo, out, progress_unless(quiet), revision, force)
    result = {"bundle": str(out), "repo": repo, "system": bundle.manifest.system, "files": len(bundle.manifest.files)}
    emit(result, as_json, lambda: [f"{out}: {bundle.manifest.system}, {result['files']} files, all intact"])
