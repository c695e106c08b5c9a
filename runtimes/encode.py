"""Raw things through an encoder on any backend: in order, in batches, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mer_export import registry
from mer_export.data.samples import Sample
from mer_export.encoders.encoder import Encoder
from mer_export.errors import InputError
from mer_export.registry import resolve
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

    @property
    def identity(self) -> dict[str, str]:
        """What decides its numbers to the last digit: the encoder, and what runs it in which precision."""
        ran = {"runtime": self.predictor.backend, "precision": self.predictor.precision}
        return {**self.encoder.identity.model_dump(), **ran}

    def encode(self, raws: Iterable[Any]) -> Iterator[np.ndarray]:
        """Features of each raw thing, in order: (width,) or (steps, width) float32.

        Raises:
            InputError: something that the encoder cannot read (see `Encoder.samples`).
        """
        return self.finish(self.prepare(raw, str(number)) for number, raw in enumerate(raws))

    def prepare(self, raw: Any, name: str) -> list[Sample]:
        """What comes before the network, in whatever thread; `name` is for messages.

        Raises:
            InputError: see `Encoder.samples`.
        """
        return self.encoder.samples(raw, name)

    def finish(self, prepared: Iterable[list[Sample]]) -> Iterator[np.ndarray]:
        """Features of each prepared thing, in order."""
        waiting: deque[list[Sample]] = deque()

        def parts() -> Iterator[Sample]:
            for samples in prepared:
                waiting.append(samples)
                yield from samples

        rows: list[np.ndarray] = []
        for _, row in self.predictor.answers(parts()):
            rows.append(row)
            if len(rows) == len(waiting[0]):
                yield self.encoder.join(rows, waiting.popleft())
                rows = []

    def close(self) -> None:
        """Frees the network."""
        self.predictor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class SignalEncoding(Encoding):
    """An encoder without a network: all that it does comes before one. No backend is needed."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self.compute = resolve(str(registry.get(encoder.bundle.manifest.system).compute))(encoder.config)

    @property
    def identity(self) -> dict[str, str]:
        """That of the encoder: nothing else decides its numbers."""
        return self.encoder.identity.model_dump()

    def prepare(self, raw: Any, name: str) -> Any:
        """The features themselves."""
        try:
            return self.compute(raw)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None

    def finish(self, prepared: Iterable[Any]) -> Iterator[np.ndarray]:
        """Passes them on."""
        return iter(prepared)

    def close(self) -> None:
        """There is nothing to free."""


def open_encoder(folder: Path | str, backend: str | None = None, trust: bool = False, **options: Any) -> Encoding:
    """An encoder's folder, ready to encode: `open_encoder("encoders/minilm").encode(["How are you?"])`.

    Args:
        folder: what `mer encoder` wrote.
        backend: a name in `known_backends()`; None takes what is installed.
        trust: run programs in it whoever wrote them.
        options: further arguments of `Encoding`.
    """
    return load_encoder(Encoder.open(folder, trust), backend, **options)


def load_encoder(encoder: Encoder, backend: str | None = None, **options: Any) -> Encoding:
    """An opened encoder, ready to encode; raises as `Encoding` does."""
    if registry.get(encoder.bundle.manifest.system).compute:
        return SignalEncoding(encoder)
    return Encoding(encoder, backend, **options)
