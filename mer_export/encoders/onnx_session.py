"""ONNX files in ONNX Runtime on the CPU, where a bundle's runtimes are not at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mer_export.errors import InputError, NotAvailableError
from mer_export.install import not_installed
from mer_export.untrusted.onnx_files import require_own_data


def open_session(path: Path, purpose: str) -> Any:
    """A session of a file whose data lies in it or beside it.

    Args:
        path: the file.
        purpose: what it does, for the error.

    Raises:
        InputError: no such file, one with data elsewhere, or one that ONNX Runtime does not read.
        NotAvailableError: ONNX Runtime is missing.
    """
    try:
        import onnxruntime
    except ImportError:
        raise NotAvailableError(not_installed(f"onnxruntime, which {purpose},", "cpu", "gpu")) from None
    if not path.is_file():
        raise InputError(f"{path} is not there: the folder is incomplete, make it again")
    require_own_data(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise InputError(f"{path} is not a network that ONNX Runtime reads: {reason}") from None
