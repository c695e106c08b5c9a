"""Logistic and ridge regression on pooled inputs, by scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from mer_export.errors import NotAvailableError
from mer_export.install import not_installed
from mer_export.task import Task
from train.experiments.baselines.inputs import Items, Scale
from train.experiments.baselines.settings import Linear

CERTAIN = 1e6
"""Size of a score where the training split knows one answer alone."""

Scores = Callable[[Items], np.ndarray]


def fits(settings: Linear, task: Task, training: Items, seed: int) -> Iterator[tuple[float, Scores]]:
    """A fitted model for every candidate; `seed` changes nothing.

    Yields:
        The strength, and what gives the scores (units, width) of items.

    Raises:
        NotAvailableError: scikit-learn is missing.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise NotAvailableError(not_installed("scikit-learn (linear baselines)", "baselines")) from None
    scale = Scale.of(training.pooled())
    x, y = scale(training.pooled())[training.rows], training.labels
    for strength in settings.strengths:
        yield strength, partial(_scores, MODELS[task.kind](task, x, y, strength), scale)


def _scores(model: Callable[[np.ndarray], np.ndarray], scale: Scale, items: Items) -> np.ndarray:
    return model(scale(items.pooled()))


def _classes(task: Task, x: np.ndarray, y: np.ndarray, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    known, fitted = _logistic(x, task.truth(y), strength)

    def scores(rows: np.ndarray) -> np.ndarray:
        found = np.full((len(rows), task.width), -CERTAIN)
        found[:, known] = fitted(rows)
        return found

    return scores


def _labels(task: Task, x: np.ndarray, y: np.ndarray, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    each = [_logistic(x, column, strength) for column in task.truth(y).T]

    def scores(rows: np.ndarray) -> np.ndarray:
        columns = []
        for known, fitted in each:
            found = fitted(rows)
            logit = found[:, 1] - found[:, 0] if len(known) > 1 else np.full(len(rows), CERTAIN * (2 * known[0] - 1))
            columns.append(logit)
        return np.stack(columns, axis=1)

    return scores


def _score(task: Task, x: np.ndarray, y: np.ndarray, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.linear_model import Ridge

    fitted = Ridge(alpha=1 / strength).fit(x, y)
    return lambda rows: fitted.predict(rows)[:, None]


def _logistic(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The classes that occur, and what gives their logits (rows, classes)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(known := np.unique(y)) == 1:
        return known, lambda rows: np.zeros((len(rows), 1))
    with warnings.catch_warnings():
        # Weakly penalised candidates of separable data go on for ever; what they are worth is measured.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted: Any = LogisticRegression(C=strength, max_iter=1000).fit(x, y)

    def logits(rows: np.ndarray) -> np.ndarray:
        found = fitted.decision_function(rows)
        return found if found.ndim == 2 else np.stack([np.zeros_like(found), found], axis=1)

    return fitted.classes_, logits


MODELS = {"classification": _classes, "multilabel": _labels, "regression": _score}
"""By the kind of a task."""
