"""A bidirectional GRU over utterances or steps, with one linear layer behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from mer_export.task import Task
from train.experiments.baselines.inputs import Items
from train.experiments.baselines.settings import Recurrent
from train.seeds import seed_everything

Scores = Callable[[Items], np.ndarray]


class BiGru(nn.Module):
    """A GRU for every sequence; its states by step, or their mean over time side by side, to scores."""

    def __init__(self, widths: Mapping[str, int], settings: Recurrent, by_step: bool, outputs: int):
        super().__init__()
        self.by_step, self.pool = by_step, settings.pool
        made = {d: nn.GRU(n, settings.width, batch_first=True, bidirectional=True) for d, n in widths.items()}
        self.recurrent = nn.ModuleDict(made)
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(2 * settings.width * len(widths), outputs)

    def forward(self, sequences: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Scores (units of all items, outputs) of sequences (steps, width) per item."""
        return self.head(self.dropout(torch.cat([self._states(d, x) for d, x in sequences.items()], dim=-1)))

    def _states(self, dim: str, arrays: Sequence[Tensor]) -> Tensor:
        lengths = torch.tensor([len(a) for a in arrays])
        padded = self.dropout(pad_sequence(list(arrays), batch_first=True))
        packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.recurrent[dim](packed)[0], batch_first=True)
        if not self.by_step:
            last = states[torch.arange(len(states)), lengths - 1]
            return last if self.pool == "last" else states.sum(1) / lengths[:, None]
        return torch.cat([s[:n] for s, n in zip(states, lengths.tolist(), strict=True)])


def fits(settings: Recurrent, task: Task, training: Items, seed: int) -> Iterator[tuple[int, Scores]]:
    """One training, and the model as it is after every epoch.

    Yields:
        The number of epochs, and what gives the scores (units, width) of items, until the next epoch is asked for.
    """
    seed_everything(seed)
    widths = {dim: arrays[0].shape[1] for dim, arrays in training.sequences.items()}
    model = BiGru(widths, settings, training.by_step, task.width)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    items, loss = _Tensors(training), LOSSES[task.kind]
    truth = torch.from_numpy(training.labels if task.kind == "regression" else task.truth(training.labels))
    for epoch in range(1, settings.epochs + 1):
        model.train()
        for places in torch.randperm(items.count).split(settings.batch):
            rows, labels = items.labelled(places)
            if len(rows):
                optimizer.zero_grad()
                loss(model(items.of(places))[rows], truth[labels]).backward()
                optimizer.step()
        yield epoch, partial(_scores, model.eval())


class _Tensors:
    """Items as tensors, and where the labelled rows of some of them are."""

    def __init__(self, items: Items):
        self.sequences = {d: [torch.from_numpy(a) for a in arrays] for d, arrays in items.sequences.items()}
        first = next(iter(self.sequences.values()))
        self.count = len(first)
        units = [len(a) if items.by_step else 1 for a in first]
        starts = np.concatenate([[0], np.cumsum(units)])
        # Of every unit its place among the labelled ones, -1 where it is none of them.
        place = np.full(starts[-1], -1)
        place[items.rows] = np.arange(len(items.rows))
        self.places = [torch.from_numpy(place[a:b]) for a, b in pairwise(starts)]

    def of(self, places: Tensor) -> dict[str, list[Tensor]]:
        """The sequences of some items."""
        return {d: [arrays[i] for i in places.tolist()] for d, arrays in self.sequences.items()}

    def labelled(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows of the output of some items are labelled, and the places of their labels."""
        found = torch.cat([self.places[i] for i in places.tolist()])
        rows = torch.nonzero(found >= 0)[:, 0]
        return rows, found[rows]


@torch.no_grad()
def _scores(model: BiGru, items: Items) -> np.ndarray:
    tensors = _Tensors(items)
    parts = torch.arange(tensors.count).split(64)
    return torch.cat([model(tensors.of(places)) for places in parts]).numpy()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classification": functional.cross_entropy,
    "multilabel": lambda scores, truth: functional.binary_cross_entropy_with_logits(scores, truth.float()),
    "regression": lambda scores, truth: functional.l1_loss(scores[:, 0], truth),
}
"""By the kind of a task."""
