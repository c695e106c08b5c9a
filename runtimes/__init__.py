"""Running a bundle on any runtime. Importing this needs no torch.

`load` opens a bundle for prediction, `BatchWorker` does in the processes of others; README.md tells the rooms.
"""

from runtimes.backends.table import known_backends, open_session
from runtimes.predict.predictor import Predictor, load
from runtimes.scale.batch_worker import BatchWorker

__all__ = ["BatchWorker", "Predictor", "known_backends", "load", "open_session"]
