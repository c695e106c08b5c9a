"""Running a bundle on any runtime. Importing this needs no torch.

`load` opens a bundle for prediction, `BatchWorker` does in the processes of others; README.md tells the rooms.
"""

from typing import TYPE_CHECKING, Any

from runtimes.backends.table import known_backends, open_session
from runtimes.predict.predictor import Predictor, load

if TYPE_CHECKING:
    from runtimes.scale.batch_worker import BatchWorker

__all__ = ["BatchWorker", "Predictor", "known_backends", "load", "open_session"]


def __getattr__(name: str) -> Any:
    """`BatchWorker` brings the readers of every format, which who predicts does not need."""
    if name != "BatchWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from runtimes.scale.batch_worker import BatchWorker

    return BatchWorker
