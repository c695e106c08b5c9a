"""Raw things through an encoder on any backend: in order, in batches, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mer_export.encoders.encoder import Encoder
from runtimes.backends.session import SessionOptions
from runtimes.predict.opening import open_predictor


class Encoding:
    """An encoder with a loaded network. Used as a context manager, or closed by hand."""

    def __init__(
        self,
        encoder: Encoder,
        backend: str | None = None,
        options: SessionOptions | None = None,
        batch: int | None = None,
        precision: str | None = None,
        workers: int = 1,
    ):
        """Finds what runs it (see `Predictor`)."""
        self.encoder = encoder
        options = options or SessionOptions()
        self.predictor = open_predictor(encoder.bundle, backend, options, batch, precision, workers=workers)

    def encode(self, raws: Iterable[Any]) -> Iterator[np.ndarray]:
        """Features of each raw thing, in order: (width,) or (steps, width) float32.

        Raises:
            InputError: something that the encoder cannot read (see `Encoder.samples`).
        """
        parts = (s for number, raw in enumerate(raws) for s in self.encoder.samples(raw, str(number)))
        for _, group in groupby(self.predictor.answers(parts), key=lambda pair: pair[0].id):
            samples, rows = zip(*group, strict=True)
            yield self.encoder.join(rows, samples)

    def close(self) -> None:
        """Frees the network."""
        self.predictor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open_encoder(folder: Path | str, backend: str | None = None, trust: bool = False, **options: Any) -> Encoding:
    """An encoder's folder, ready to encode: `open_encoder("encoders/minilm").encode(["How are you?"])`.

    Args:
        folder: what `mer encoder` wrote.
        backend: a name in `known_backends()`; None takes what is installed.
        trust: run programs in it whoever wrote them.
        options: further arguments of `Encoding`.
    """
    return Encoding(Encoder.open(folder, trust), backend, **options)
