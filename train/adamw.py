"""AdamW as the `transformers` package up to version 4 had it, which published recipes were run with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


class AdamW(torch.optim.Optimizer):
    """Differs from PyTorch's in where `eps` is added, before the bias is corrected, and in decaying after the step.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient; each counts its own steps."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained:
                self._update(trained, group)
        return loss

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        """All parameters in a few calls: one by one, a GPU waits for the host between them."""
        states = [self._counted(p) for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        first, second = group["betas"]
        means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_add_(divisors, group["eps"])
        steps = [int(s["step"]) for s in states]
        rates = [-group["lr"] * math.sqrt(1 - second**step) / (1 - first**step) for step in steps]
        torch._foreach_addcdiv_(parameters, means, divisors, rates)
        if group["weight_decay"]:
            torch._foreach_sub_(parameters, parameters, alpha=group["lr"] * group["weight_decay"])

    def _counted(self, parameter: torch.Tensor) -> dict[str, Any]:
        """The state of a parameter, with one more step; the count stays on the host."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        return state
