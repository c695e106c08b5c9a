"""What the machine, not the project, did wrong: one table from exceptions to a sentence and an exit code.

Whatever stands in no table here is a bug of ours, and the command line says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from mer_export.errors import MerError, NotAvailableError, UsageError
from mer_export.install import Extra, install_hint, not_installed

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal."""

ADVICE = {
    errno.ENOSPC: "the disk is full: free some space or write elsewhere",
    errno.EDQUOT: "the quota of this user is used up: free some space or write elsewhere",
    errno.EFBIG: "the file is larger than this file system or user may have: write elsewhere",
    errno.EACCES: "no permission: check who may read and write there",
    errno.EPERM: "no permission: check who may read and write there",
    errno.EROFS: "it is on a read-only file system: write elsewhere, or copy the bundle first",
    errno.EISDIR: "it is a directory, expected a file",
    errno.ENOTDIR: "a part of the path is a file, expected a directory",
    errno.ENOENT: "it does not exist, or no longer",
    errno.EEXIST: "it exists already",
    errno.ENOTEMPTY: "the directory is not empty",
    errno.ENAMETOOLONG: "the name is too long: use a shorter one",
    errno.ELOOP: "its symbolic links form a circle",
    errno.EMFILE: "too many open files: raise the limit with ulimit -n",
    errno.ENFILE: "too many open files on this machine",
    errno.EBUSY: "something else is using it",
    errno.ETXTBSY: "something else is using it",
    errno.EIO: "the device fails to read or write: check the disk",
    errno.ESTALE: "the network file system lost it: mount it again",
    errno.ENOMEM: "there is not enough memory",
    errno.ENOTSUP: "this file system does not support what is needed: write elsewhere",
    errno.ENXIO: "it is not an ordinary file",
}
"""What to say, and to do, for an error of the operating system."""

PACKAGES: dict[str, tuple[Extra, ...]] = {
    "torch": ("train", "export"),
    "jaxtyping": ("train", "export"),
    "accelerate": ("train",),
    "onnx": ("export",),
    "onnxscript": ("export",),
    "onnxruntime": ("cpu", "gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx",),
    "pyarrow": ("columnar",),
    "h5py": ("hdf5",),
    "tokenizers": ("text",),
    "transformers": ("encoders",),
    "PIL": ("media", "faces"),
    "av": ("media",),
    "soundfile": ("media",),
    "soxr": ("media",),
    "opensmile": ("opensmile",),
    "matplotlib": ("report",),
    "jinja2": ("report",),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
    "huggingface_hub": ("hub",),
    "starlette": ("serve",),
    "uvicorn": ("serve",),
    "h11": ("serve",),
    "httptools": ("serve",),
    "packaging": ("serve",),
    "prometheus_client": ("serve",),
    "tritonclient": ("triton",),
    "grpc": ("triton",),
    "ray": ("scale",),
    "fsspec": ("scale",),
    "sklearn": ("baselines",),
}
"""Which extras bring what is imported by that name."""

RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust (safetensors, tokenizers) say which error the operating system gave."""


@contextlib.contextmanager
def at(path: object) -> Iterator[None]:
    """Names a file or folder in errors of the operating system that name none: a write does not say where it failed."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if found := RUST.search(str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise


def explain(error: BaseException) -> MerError | None:
    """The same error as a sentence with an exit code; None for what only a bug of ours explains."""
    if isinstance(error, MerError):
        return error
    if isinstance(error, ImportError):
        return _package(error)
    if isinstance(error, MemoryError):
        return UsageError(f"{ADVICE[errno.ENOMEM]}: use a machine with more, or a smaller --batch")
    if isinstance(error, OSError):
        return _system(error)
    if found := RUST.search(str(error)):
        return _system(OSError(int(found[1]), os.strerror(int(found[1]))))
    return None


def _system(error: OSError) -> MerError | None:
    text = (str(error).splitlines() or [""])[0]
    if error.errno is None:
        # What the dynamic linker says comes without a number.
        return NotAvailableError(f"a package does not load: {text}: install it again") if ".so" in text else None
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    said = ADVICE.get(error.errno, (error.strerror or text).lower())
    return UsageError(": ".join([" -> ".join(names), said] if names else [said]))


def _package(error: ImportError) -> MerError | None:
    package = (error.name or "").partition(".")[0]
    extras = PACKAGES.get(package)
    if extras is None:
        return None
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return NotAvailableError(not_installed(package, *extras))
    cause = (str(error).splitlines() or [""])[0]
    return NotAvailableError(f"{package} is installed and does not load ({cause}): {install_hint(*extras)} again")
