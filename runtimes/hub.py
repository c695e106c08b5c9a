"""Bundles on a model hub that speaks Hugging Face's protocol; what comes from there is a stranger's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mer_export import faults
from mer_export.bundle import MANIFEST, Bundle, Manifest
from mer_export.bundle.bundle import taken
from mer_export.bundle.consistency import require_consistent
from mer_export.bundle.files import inside, scratch_folder
from mer_export.bundle.manifest import MOST, read_manifest
from mer_export.errors import BundleError, NotAvailableError, UsageError
from mer_export.install import not_installed
from mer_export.progress import Progress

PICKLES = (".pkl", ".pickle", ".joblib", ".ckpt", ".pth", ".bin")
"""Endings of files that a bundle never holds: pickles, under the names that they usually have."""


def push(bundle: Bundle, repo: str, private: bool = False, message: str = "Bundle") -> str:
    """Makes a repository hold a bundle and nothing else; returns the address of the commit.

    Args:
        bundle: verified first; only the files that it lists go.
        repo: `owner/name`, made if it is not there.
        private: of a new repository.
        message: of the commit.

    Raises:
        NotAvailableError: the package is missing, or the hub cannot be reached.
        UsageError: the hub refuses: no such owner, no token, no right to write.
        BundleError: a file is damaged, or a change was cut short and is not finished yet.
    """
    with _hub(repo) as api, bundle.reading():
        bundle.verify()
        if bundle.pending:
            # Some files of it lie elsewhere, and in their places those of before.
            raise BundleError(f"{bundle.root}: a change was cut short: run mer card {bundle.root}, which ends it first")
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=bundle.root,
            allow_patterns=[MANIFEST, *bundle.manifest.files],
            delete_patterns=["*"],
            commit_message=message,
        )
    return str(done.commit_url)


def pull(repo: str, out: Path, progress: Progress, revision: str | None = None, force: bool = False) -> Bundle:
    """Fetches the bundle of a repository into a folder, where it is when every checksum is right.

    Only what the bundle lists is fetched. Nothing of it is loaded.

    Args:
        repo: `owner/name`.
        out: the new bundle.
        progress: shows each file.
        revision: branch, tag or commit.
        force: replace an existing bundle, as a whole.

    Raises:
        NotAvailableError: the package is missing, or the hub cannot be reached.
        UsageError: there is no such repository, or no right to read it; `out` holds what is not to be replaced.
        BundleError: no bundle, a damaged one, or one that names files outside itself, or pickles; somebody writes
            the one that is to be replaced.
    """
    taken(out, force)
    with _hub(repo) as api, faults.at(out), scratch_folder(out) as fresh:
        known = api.model_info(repo, revision=revision, files_metadata=True)
        sizes = {s.rfilename: s.size for s in known.siblings or ()}
        staged = fresh / "pulled"
        staged.mkdir()
        source = {"repo_id": repo, "revision": known.sha, "local_dir": fresh / "hub"}
        if MANIFEST not in sizes:
            raise BundleError(f"{repo} is not a bundle: it has no {MANIFEST}")
        if (sizes[MANIFEST] or 0) > MOST:
            raise BundleError(f"{repo}: {MANIFEST} is larger than {MOST >> 20} MiB: it is not what mer writes")
        _fetch(api, source, MANIFEST, staged)
        manifest = read_manifest(staged / MANIFEST)
        require_consistent(f"{repo}: {MANIFEST}", manifest)
        _refuse(repo, manifest, sizes, staged)
        with progress.over(f"pulling {repo}", len(manifest.files), "file") as shown:
            for name in manifest.files:
                shown.begin(name)
                _fetch(api, source, name, staged)
        pulled = Bundle.open(staged)
        pulled.verify()
        return pulled.move_to(out, force)


def _refuse(repo: str, manifest: Manifest, sizes: dict[str, int | None], root: Path) -> None:
    """Raises BundleError for the first listed file that is not fetched, before any is."""
    for name, entry in manifest.files.items():
        inside(root, name)
        if name.lower().endswith(PICKLES):
            raise BundleError(f"{repo}: {name} is a pickle by its name, which no bundle holds: it is not fetched")
        if name not in sizes:
            raise BundleError(f"{repo}: {name} is missing: ask whoever pushed it to push again")
        if sizes[name] != entry.size:
            raise BundleError(f"{repo}: {name} has {sizes[name]} bytes, not {entry.size}: it is damaged")


def _fetch(api: Any, source: dict[str, Any], name: str, root: Path) -> None:
    """One file, moved to its place without following a link."""
    got = Path(api.hf_hub_download(filename=name, **source))
    if got.is_symlink() or not got.is_file():
        raise BundleError(f"{source['repo_id']}: {name} is not a plain file")
    place = inside(root, str(PurePosixPath(name)))
    place.parent.mkdir(parents=True, exist_ok=True)
    got.replace(place)


@contextlib.contextmanager
def _hub(repo: str) -> Iterator[Any]:
    """The client; its errors as sentences."""
    try:
        from huggingface_hub import HfApi, errors
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise NotAvailableError(not_installed("huggingface_hub", "hub")) from None
    disable_progress_bars()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="mer-export")
    try:
        yield api
    except errors.HFValidationError as error:
        raise UsageError(f"{repo} is no name of a repository: {_first(error)}") from None
    except errors.RepositoryNotFoundError:
        raise UsageError(f"{api.endpoint} has no {repo}, or you may not see it: check the name, or log in") from None
    except errors.LocalTokenNotFoundError:
        raise UsageError(f"{api.endpoint} asks who you are: run `hf auth login`, or set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise UsageError(f"{repo} has no such revision: check --revision") from None
    except errors.HfHubHTTPError as error:
        raise UsageError(f"{api.endpoint} refuses {repo}: {_first(error)}") from None
    # The base of all of its client's errors: what is left of them is that there was no answer.
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.HTTPError) as error:
        raise NotAvailableError(f"{api.endpoint} cannot be reached from here: {_first(error)}") from None


def _first(error: Exception) -> str:
    """The first line of what an error says."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
