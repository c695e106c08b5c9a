"""Several processes of one run: what they average, what they share out, and how long they wait for each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(days=1)
"""The others wait while the first process evaluates and writes; one that died is noticed by what started it."""

Item = TypeVar("Item")


class Processes:
    """Gradients are averaged once per optimiser step, not in the backward pass.

    So passes that train a part of the network, parameters that some losses leave out, and batches whose gradients add
    up first need nothing of their own. With one process every method gives back what it got.
    """

    def __init__(self, accelerator: Accelerator):
        self.count, self.index = accelerator.num_processes, accelerator.process_index
        self._hosts = distributed.new_group(timeout=PATIENCE, backend="gloo") if self.count > 1 else None

    def start_alike(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the first one's values."""
        from accelerate.utils import broadcast

        if self.count == 1:
            return
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(broadcast(tensor))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The mean gradient of each parameter; of one that has none in any process there is none afterwards."""
        if self.count == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        # On the hosts, so that none of them waits for its GPU to know which parameters are meant.
        used = torch.tensor([int(p.grad is not None) for p in trained])
        distributed.all_reduce(used, distributed.ReduceOp.MAX, group=self._hosts)
        chosen = [p for p, n in zip(trained, used.tolist(), strict=True) if n]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in chosen if p.grad is not None]
        if not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        distributed.all_reduce(flat)
        parts = (flat / self.count).split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes; not a number where one process has none."""
        if self.count == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.count

    def share(self, batches: Sequence[Item]) -> list[Item]:
        """Of the first process's batches this process's own; the first ones repeat where they do not divide."""
        from accelerate.utils import broadcast_object_list

        if self.count == 1:
            return list(batches)
        (common,) = broadcast_object_list([list(batches)])
        return self.own(common)

    def own(self, batches: Sequence[Item]) -> list[Item]:
        """As `share`, of batches that every process has alike."""
        missing = -len(batches) % self.count
        return [*batches, *(batches[i % len(batches)] for i in range(missing))][self.index :: self.count]
