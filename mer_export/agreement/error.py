"""How far one output is from its reference, and which part of a tolerance that takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer_export.bundle import Strict

FAR = 1e12
"""Stands for a part of the tolerance that cannot be told, such as that of NaN."""


class OutputError(Strict):
    """Agreement of one output over all samples.

    Errors are of finite elements. `used` is the largest part of the tolerance that an element takes (1 = exactly at the
    limit, very large where one is NaN or infinite), `relative` the norm of all errors over the norm of the reference.
    """

    output: str
    atol: float
    rtol: float
    elements: int
    max_abs: float
    mean_abs: float
    used: float
    relative: float | None = None
    """None in reports of earlier releases."""
    cosine: float | None
    nonfinite: int
    """NaN or infinite elements of the candidate."""

    @property
    def agrees(self) -> bool:
        """Whether every element keeps the tolerance."""
        return self.used <= 1 and not self.nonfinite

    @property
    def size(self) -> str:
        """How far off it is, in words."""
        if self.nonfinite:
            return f"{self.nonfinite} values that are NaN or infinite"
        return f"{self.max_abs:.2e}"


def output_error(
    name: str, reference: Sequence[np.ndarray], candidate: Sequence[np.ndarray], atol: float, rtol: float
) -> OutputError:
    """Agreement of one output: arrays of equal shapes, pairwise, whose last axis holds the scores of one unit.

    An element agrees when |a - b| <= atol + rtol * |largest reference score of its unit|.
    """
    a = np.concatenate([x.reshape(-1) for x in reference]).astype(np.float64)
    b = np.concatenate([x.reshape(-1) for x in candidate]).astype(np.float64)
    with np.errstate(invalid="ignore"):
        used = _used(np.abs(a - b), atol + rtol * np.concatenate([_spread(x) for x in reference]))
    finite = np.isfinite(a) & np.isfinite(b)
    nonfinite = int((~np.isfinite(b)).sum())
    a, b = a[finite], b[finite]
    error, size = np.abs(a - b), float(np.linalg.norm(a))
    norm = size * float(np.linalg.norm(b))
    return OutputError(
        output=name,
        atol=atol,
        rtol=rtol,
        elements=finite.size,
        max_abs=float(error.max(initial=0.0)),
        mean_abs=float(error.mean()) if error.size else 0.0,
        used=used,
        relative=float(np.linalg.norm(error)) / max(size, float(np.finfo(np.float32).tiny)),
        cosine=float(a @ b / norm) if norm else None,
        nonfinite=nonfinite,
    )


def row_scale(reference: np.ndarray) -> np.ndarray:
    """The largest finite magnitude of each row (..., 1), as float64.

    Scores of one unit are computed together: a small log-probability is the difference of scores as large as the
    largest one, and is rounded as they are.
    """
    magnitude = np.abs(reference.astype(np.float64))
    magnitude = np.where(np.isfinite(magnitude), magnitude, 0.0)
    return np.asarray(magnitude.max(axis=-1, keepdims=True, initial=0.0))


def _spread(reference: np.ndarray) -> np.ndarray:
    return np.broadcast_to(row_scale(reference), reference.shape).reshape(-1)


def _used(error: np.ndarray, tolerance: np.ndarray) -> float:
    """The largest error / tolerance; 0 for equal arrays at tolerance 0, large for unequal ones."""
    tolerance = np.maximum(tolerance, np.finfo(np.float64).tiny)
    part = np.where(error == 0, 0.0, np.minimum(error / tolerance, FAR))
    return float(np.where(np.isfinite(part), part, FAR).max(initial=0.0))
