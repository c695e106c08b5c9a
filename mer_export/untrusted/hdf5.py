"""Reads numeric arrays of HDF5 files, and nothing that points outside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mer_export.errors import InputError, NotAvailableError
from mer_export.install import not_installed
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.impostors import refuse_impostor


def load_hdf5(path: Path | str, name: str) -> np.ndarray:
    """The data set `name` of an HDF5 file.

    Raises:
        InputError: no such file or data set, damaged, not numeric, or with data in other files.
        NotAvailableError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise NotAvailableError(not_installed("h5py", "hdf5")) from None
    refuse_impostor(path)
    budget = Budget.of(Path(path))
    try:
        with h5py.File(path, "r") as file:
            link = file.get(name, getlink=True)
            found = file[name] if isinstance(link, h5py.HardLink) else None
            if not isinstance(found, h5py.Dataset):
                raise InputError(f"{path} has no data set {name!r}, there are {sorted(file)[:20]}")
            if found.is_virtual or found.external or found.dtype.kind not in "fiu":
                raise InputError(f"{path}: data set {name!r} is {found.dtype} or lies in other files, expected numbers")
            # A data set may claim values that no byte of the file stands for.
            budget.take_array(found.shape, found.dtype)
            return found[()]
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not a readable HDF5 file: {' '.join(str(error).split())[:120]}") from None


def save_hdf5(path: Path, name: str, array: np.ndarray) -> None:
    """Writes one array; raises NotAvailableError without h5py."""
    try:
        import h5py
    except ImportError:
        raise NotAvailableError(not_installed("h5py", "hdf5")) from None
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=array)
