"""Evaluation of a bundle on a split, with the losses that it was trained by."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mer_export.bundle import CONFIG, Bundle
from mer_export.contract import Semantics
from mer_export.cuda import tf32
from mer_export.data.samples import Sample
from mer_export.untrusted.yaml_files import read_yaml
from mer_export.weights import bundle_model
from train.config import parse_config
from train.model_metrics import PUBLISHED_BATCH, Evaluated, evaluate_model
from train.protocol import Protocol
from train.recipe import protocol_class, recipe


def evaluate(
    bundle: Bundle,
    samples: Sequence[Sample],
    semantics: Semantics = "single",
    batch: int = PUBLISHED_BATCH,
    device: str = "cpu",
) -> Evaluated:
    """Metrics of the bundle's PyTorch model in fp32 on labelled samples, in percent, rounded as published.

    Args:
        bundle: a trained or imported bundle.
        samples: in the order of the data set; with `batch` semantics the order matters.
        semantics: `single` is what exports compute; `batch` is the authors' own evaluation.
        batch: dialogues per batch, 16 in the published evaluation.
        device: `cpu` or `cuda`.

    Returns:
        The task's metrics by name (two decimals, of plain values four), with `loss` where the training loss is known,
        and how each label was decided.
    """
    model, protocol = bundle_model(bundle).to(device), _protocol(bundle, device)
    known = (protocol.class_loss, protocol.mean, protocol.published_metrics) if protocol else ()
    contract, task = bundle.manifest.contract, bundle.manifest.task
    model = protocol.measured(model) if protocol and semantics == "single" else model
    with tf32(False):
        return evaluate_model(model, samples, contract, task, semantics, batch, *known)


def evaluate_published(
    bundle: Bundle,
    samples: Sequence[Sample],
    batch: int = PUBLISHED_BATCH,
    device: str = "cpu",
    threads: int | None = None,
) -> Evaluated:
    """The authors' own evaluation: batches of 16, `batch` semantics, rounded; `threads` None leaves PyTorch's."""
    if threads:
        torch.set_num_threads(threads)
    return evaluate(bundle, samples, "batch", batch, device)


def _protocol(bundle: Bundle, device: str) -> Protocol | None:
    """The protocol the bundle was trained with, for its losses; None without a training configuration."""
    if CONFIG not in bundle.manifest.files:
        return None
    values = read_yaml(bundle.path(CONFIG))
    if not isinstance(values, dict) or "protocol" not in values:
        return None
    config = parse_config(values, source=f"{bundle.root}/{CONFIG}")
    settings = recipe(config.system).settings.model_validate(config.protocol)
    protocol: Protocol = protocol_class(config.system)(settings)
    protocol.set_class_weights(bundle.manifest.provenance.get("class_weights"), torch.device(device))
    protocol.set_class_offsets(bundle.manifest.provenance.get("class_offsets"), torch.device(device))
    return protocol
