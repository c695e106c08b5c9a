"""Dialogues with the features that a bundle's own encoders make of their sentences and recordings."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mer_export.bundle import Bundle
from mer_export.data.bundle_data import bundle_samples
from mer_export.data.dialogues import Dialogue, Utterance
from mer_export.data.samples import Sample
from mer_export.errors import InputError
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import find_backend
from runtimes.predict.machine_profile import Goal, encoder_ways, own_profile

if TYPE_CHECKING:
    from mer_export.encoders import encoder as opened
    from runtimes.features.encoded import Encoder, Outcome

log = logging.getLogger("mer")

WORKERS = 2
"""Threads that decode files while networks compute."""
TOLD = 5
"""Files that cannot be read of which the reason is said."""


@dataclass
class Completion:
    """The encoders of a bundle, loaded, for dialogues that pass. Used as a context manager, or closed by hand."""

    encoder: Encoder
    unreadable: int = 0
    """Utterances with a file that cannot be read: they have no features, and so no label."""
    refusing: bool = False
    """Whether a file that cannot be read is an error instead."""
    _stack: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        workers: int = WORKERS,
        goal: str | None = None,
        say: Callable[[str], None] = lambda line: None,
        **options: Any,
    ) -> Completion:
        """Loads the encoders of a bundle.

        Args:
            bundle: one with encoders (`mer attach`).
            workers: threads that decode.
            goal: the runtime of each network is what `mer tune` found best for it, within `options`.
            say: told what was chosen for the goal.
            options: how the networks run (see `runtimes.encode.Encoding`); a `backend` that runs no file of an encoder
                is that of the model alone.

        Raises:
            UsageError: a goal, and no profile of this machine.
        """
        # Bundles without encoders, which most are, need none of it.
        from mer_export.encoders.attached import attached
        from runtimes.encode import load_encoder
        from runtimes.features.encoded import Encoder

        kind = (options.get("options") or SessionOptions()).kind
        ways = encoder_ways(own_profile(bundle), Goal.parse(goal), options.get("backend"), kind) if goal else {}
        for (modality, name), way in ways.items():
            say(f"{goal}, {modality}: {name} by {way['backend']}, batch {way['batch']}")
        with ExitStack() as stack:
            loaded = {
                n: [
                    stack.enter_context(load_encoder(e, **_able(e, options) | ways.get((n, e.identity.name), {})))
                    for e in encoders
                ]
                for n, encoders in attached(bundle).items()
            }
            return cls(Encoder(loaded, None, workers), _stack=stack.pop_all())

    def strict(self) -> Completion:
        """The same networks for the dialogues of one request: it keeps no recording, and refuses one that is broken."""
        return Completion(type(self.encoder)(self.encoder.loaded, None, self.encoder.workers), refusing=True)

    def __call__(self, dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
        """The same dialogues, whose utterances have what the encoders make of them.

        Raises:
            InputError: a file that cannot be read, where it is refusing.
        """
        waiting: deque[Dialogue] = deque()

        def noted() -> Iterator[Dialogue]:
            for dialogue in dialogues:
                waiting.append(dialogue)
                yield dialogue

        own: list[Utterance] = []
        for outcome in self.encoder.outcomes([noted()]):
            own.append(self._with(waiting[0].utterances[len(own)], outcome))
            if len(own) == len(waiting[0].utterances):
                yield replace(waiting.popleft(), utterances=own)
                own = []

    def _with(self, utterance: Utterance, outcome: Outcome) -> Utterance:
        if outcome.problem and self.refusing:
            raise InputError(outcome.problem)
        if outcome.problem:
            self.unreadable += 1
            if self.unreadable <= TOLD:
                log.warning("%s: %s", utterance.id, outcome.problem)
            return replace(utterance, unreadable=True)
        made = {n: (a,) for n, a in outcome.features.items()}
        return replace(utterance, features={**utterance.features, **made})

    def close(self) -> None:
        """Frees the networks."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _able(encoder: opened.Encoder, options: dict[str, Any]) -> dict[str, Any]:
    """The options, without a backend that runs no file of an encoder: a bundle takes no weights of it along."""
    how = options.get("options") or SessionOptions()
    named = options.get("backend")
    if named and not find_backend(named).usable(encoder.bundle.manifest.variants, how.kind):
        return options | {"backend": None}
    return options


@contextmanager
def encoders_of(bundle: Bundle) -> Iterator[Completion | None]:
    """The encoders of a bundle, loaded for the block as they run by default; None where it has none."""
    if not bundle.manifest.encoders:
        yield None
        return
    with Completion.of(bundle) as completion:
        yield completion


def split_samples(
    bundle: Bundle, path: Path, data_format: str, split: str, outside: Iterable[Path] | None = None
) -> list[Sample]:
    """One split of a data set as a bundle reads it, with what its encoders make of recordings and sentences, as far as
    those can be read."""
    with encoders_of(bundle) as through:
        return [s.read for s in bundle_samples(bundle, path, data_format, split, outside, through)]
