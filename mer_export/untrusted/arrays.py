"""Arrays of npy and npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mer_export.errors import InputError


def load_array(path: Path, name: str | None = None) -> np.ndarray:
    """An array of an npy file, or the one of that name (or the only one) of an npz file; raises InputError."""
    try:
        with open(path, "rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            names = content.files
            if name is None and len(names) == 1:
                name = names[0]
            if name not in names:
                raise InputError(f"{path} has no array {name!r}, there are {names}")
            return content[name]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except InputError:
        raise
    except Exception as error:  # zip, header and length errors have many types
        raise InputError(f"{path} is not a readable array file: {' '.join(str(error).split())[:120]}") from None
