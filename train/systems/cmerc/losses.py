"""Losses of CMERC (section 6 of its description): classification, calibration (rank) and contrast.

Rows are utterances of a batch of dialogues, concatenated. All losses are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

LogProb = Float[Tensor, "rows classes"]
Labels = Int[Tensor, " rows"]
Features = Float[Tensor, "rows features"]
ClassLoss = Callable[[LogProb, Labels], Tensor]

MODALITY_VIEWS = ("text", "audio", "vision")
CONTEXT_VIEWS = ("intra", "inter")


def weighted_nll(log_prob: LogProb, labels: Labels, weight: Tensor | None = None) -> Tensor:
    """Negative log-likelihood, normalised by the sum of the weights of the targets."""
    return functional.nll_loss(log_prob, labels, weight)


def focal(log_prob: LogProb, labels: Labels, gamma: float = 2.5, alpha: float = 1.0) -> Tensor:
    """Focal loss as CMERC and M3NET use it on MELD: hard targets weigh more, and every class contributes.

    The modulator is (1 - log p)^gamma of the target instead of the usual (1 - p)^gamma, and the mean runs over all
    rows and classes.
    """
    log_p = functional.log_softmax(log_prob, dim=-1)
    target = functional.one_hot(labels, log_prob.shape[-1]).to(log_p.dtype)
    return (-alpha * (1 - target * log_p) ** gamma * log_p).mean()


def rank(log_prob: LogProb, views: Mapping[str, LogProb], labels: Labels) -> Tensor:
    """Calibration: a degraded view must not be more confident in the label than the full model.

    A sum over utterances and views, not a mean; the gradient goes into `log_prob` only.
    """
    own = _of_label(log_prob, labels)
    gaps = [functional.relu(_of_label(view.detach(), labels) - own).sum() for view in views.values()]
    return torch.stack(gaps).sum()


def binary_labels(log_prob: LogProb, view: LogProb, labels: Labels) -> Int[Tensor, " rows"]:
    """1 where the full model is right and the view is wrong or less confident, otherwise 0."""
    right = log_prob.argmax(-1) == labels
    view_wrong = view.argmax(-1) != labels
    better = _of_label(log_prob, labels) > _of_label(view, labels)
    return (right & (view_wrong | better)).long()


def contrast(features: Features, groupings: Mapping[str, Int[Tensor, " rows"]], temperature: float = 0.07) -> Tensor:
    """Supervised contrast of utterances grouped by binary labels: MSCL or CSCL, by the views that are passed.

    Args:
        features: graph features before dropout and ReLU, with gradient.
        groupings: binary labels of each view.
        temperature: of the cosine similarities.

    Returns:
        A scalar; 0 without gradient of a single utterance, which has nothing to be compared with.
    """
    if len(features) < 2:
        return torch.zeros((), device=features.device)
    unit = functional.normalize(features, dim=-1)
    similarity = torch.exp(unit @ unit.T / temperature)
    similarity = similarity * (1.0 - torch.eye(len(unit), device=unit.device, dtype=unit.dtype))
    per_row = torch.zeros(len(unit), device=unit.device, dtype=unit.dtype)
    for group in groupings.values():
        # 1 + 1e-7 is 1.00000012 in float32, so `other` is slightly negative for equal labels, as in CMERC.
        same = (group[:, None] == group[None, :]).to(unit.dtype) + 1e-7
        other = 1.0 - same
        near, far = (similarity * same).sum(1), (similarity * other).sum(1)
        ones = group.sum()
        weight = len(group) / torch.stack([len(group) - ones, ones]).clamp(min=1).to(unit.dtype)
        per_row = per_row + weight[group] * torch.log(near / (near + far))
    return -per_row.mean()


def _of_label(log_prob: LogProb, labels: Labels) -> Float[Tensor, " rows"]:
    return log_prob.gather(1, labels[:, None])[:, 0]
