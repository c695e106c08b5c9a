"""Running a bundle on any runtime. Importing this needs no torch.

`load` opens a bundle for prediction; the rooms are `backends`, `predict`, `parity`, `speed` and `pages`.
"""

from runtimes.backends.table import known_backends, open_session
from runtimes.predict.predictor import Predictor, load

__all__ = ["Predictor", "known_backends", "load", "open_session"]
