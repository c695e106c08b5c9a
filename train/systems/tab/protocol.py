"""The training step of tab: margin loss on raw scores, attention penalty, encoders frozen as configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mer_export.bundle import MANIFEST, WEIGHTS, Bundle
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.layers.bert.folder import DECIDED
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.pretrained import load_pretrained
from mer_export.models.tab import SYSTEM
from mer_export.models.tab.config import TabConfig
from mer_export.models.tab.network import Tab
from mer_export.models.tab.weights import load_encoder, load_lhs_encoders
from train.batches import Batch
from train.config import TrainConfig
from train.protocol import Autocast, Protocol
from train.systems.tab.encoded import EncodedOnce, nothing_known
from train.systems.tab.losses import attention_penalty, batch_averages, margin_loss
from train.systems.tab.newbob import Newbob
from train.systems.tab.settings import TabSettings
from train.updates import Updates, make_optimizer


class TabProtocol(Protocol):
    """One training run of any variant."""

    settings: TabSettings
    schedule: Newbob | None = None
    best: dict[str, Tensor] | None = None
    """Weights that newbob goes back to."""

    def __init__(self, settings: TabSettings, difficulty: Mapping[str, float] | None = None):
        super().__init__(settings, difficulty)
        self.known = nothing_known()

    def check(self, model: TabConfig) -> None:
        """Raises UsageError for a penalty of a variant that it is not for, and dropout left out of what is trained."""
        if self.settings.penalty and "tab" not in model.branches:
            raise UsageError(f"protocol.penalty is for variants with a context, {model.variant} has none")
        for modality in model.pretrained:
            frozen = getattr(self.settings.freeze, modality)
            if frozen != "all" and not self.settings.freeze.dropout:
                raise UsageError(
                    f"protocol.freeze.dropout=false is for encoders that are frozen as a whole: of {modality} "
                    f"protocol.freeze.{modality} says {frozen}"
                )

    def prepare(self, model: Tab, samples: Sequence[Sample], device: torch.device) -> nn.Module:
        """Loads the encoders and freezes what is not trained."""
        files = {source.section: source.path for source in self.settings.sources}
        if self.settings.lhs:
            _load_lhs(model, Path(self.settings.lhs))
        for modality, encoder in model.encoders.items():
            assert isinstance(encoder, Bert)
            path = files[modality]
            if path and not self.settings.lhs:
                _load_encoder(encoder, Path(path), f"model.{modality}")
            freeze(encoder, getattr(self.settings.freeze, modality))
        return model if self.settings.freeze.dropout else self.measured(model)

    def measured(self, model: Tab) -> nn.Module:
        """As training; what frozen encoders gave is remembered from one epoch to the next."""
        return EncodedOnce(model, self.known)

    def updates(self, model: Tab, config: TrainConfig) -> Updates:
        """One group of everything that is trained."""
        return Updates(make_optimizer(config, [p for p in model.parameters() if p.requires_grad]))

    def step(self, module: nn.Module, batch: Batch, autocast: Autocast = nullcontext) -> dict[str, Tensor]:
        """The margin loss as `class_loss`, the weighted `penalty` where it is on, and their `total`."""
        with autocast():
            found = module(**batch.inputs)
        logits, attention = found if isinstance(found, tuple) else (found, None)
        loss = self.class_loss(batch.rows(logits), batch.labels)
        if not self.settings.penalty or attention is None:
            return {"class_loss": loss, "total": loss}
        penalty = self.settings.penalty * attention_penalty(attention.float())
        return {"class_loss": loss, "penalty": penalty, "total": loss + penalty}

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of predictions alone; validation leaves the penalty out."""
        return margin_loss(logits, labels, self.settings.margin)

    def published_metrics(self, scores: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, float]:
        """Accuracies averaged over batches, in percent."""
        found = batch_averages([s.cpu() for s in scores], [y.cpu() for y in labels], self.settings.margin)
        classes = found.pop("class_accuracy")
        percent = {f"batch_mean/{n}": 100 * float(v) for n, v in found.items() if n != "loss"}
        return percent | {f"batch_mean/class_accuracy/{i}": 100 * float(v) for i, v in enumerate(classes)}

    def end_epoch(self, record: Mapping[str, Any], model: nn.Module, optimizer: Any, passed: bool) -> None:
        """Steps newbob where it is on; weights go back to the best ones after an epoch without gain."""
        rule = self.settings.newbob
        if rule is None:
            return
        if self.schedule is None:
            lr = float(optimizer.param_groups[0]["lr"])
            self.schedule = Newbob(lr, threshold=rule.threshold, ramp_from=rule.ramp_from)
        try:
            metric = record["splits"][rule.split][rule.metric] / 100
        except KeyError:
            raise UsageError(f"protocol.newbob: {rule.metric} of split {rule.split} is not measured") from None
        lr = self.schedule.step(metric)
        for group in optimizer.param_groups:
            group["lr"] = lr
        if not rule.restore or passed:
            return
        if self.schedule.best_step == self.schedule.steps:
            self.best = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        elif self.best is not None:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in self.best:
                        parameter.copy_(self.best[name])

    def tensors(self) -> dict[str, Tensor]:
        """The best weights so far, for resuming."""
        return self.best or {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.best = dict(tensors) or None


def freeze(encoder: Bert, what: int | str) -> None:
    """Takes the first layers, or all of an encoder, out of training."""
    frozen = [encoder] if what == "all" else list(encoder.layers)[: int(what)]
    for module in frozen:
        for parameter in module.parameters():
            parameter.requires_grad_(False)


def _load_encoder(encoder: Bert, path: Path, section: str) -> None:
    """The weights of a folder as `transformers` stores them, or of a file of fairseq."""
    load_pretrained(encoder, path, section) if path.is_dir() else load_encoder(encoder, path, section)


def _load_lhs(model: Tab, path: Path) -> None:
    """Encoders of a fine-tuned lhs, from a bundle or from the authors' state dict."""
    if not (path / MANIFEST).is_file():
        return load_lhs_encoders(model, path)
    from safetensors.torch import load_file

    bundle = Bundle.open(path)
    _check_lhs(model.config, SYSTEM.parse(bundle.manifest.config), path)
    state = load_file(bundle.path(WEIGHTS))
    own = model.encoders.state_dict()
    given = {n.removeprefix("encoders."): t for n, t in state.items() if n.startswith("encoders.")}
    wrong = [n for n, t in own.items() if n not in given or given[n].shape != t.shape]
    if wrong:
        raise UsageError(f"{path} does not fit the encoders of this model: {wrong[0]} is missing or of another shape")
    model.encoders.load_state_dict({n: given[n] for n in own})
    return None


def _check_lhs(config: TabConfig, theirs: TabConfig, path: Path) -> None:
    """Raises UsageError where the bundle's encoders are configured in another way that their shapes do not show."""
    for modality in config.pretrained:
        ours, other = config.encoders[modality], theirs.encoders[modality]
        for name in DECIDED:
            if getattr(ours, name) != getattr(other, name):
                raise UsageError(
                    f"{path} does not fit the encoders of this model: model.{modality}.{name} is "
                    f"{getattr(ours, name)}, the bundle's is {getattr(other, name)}"
                )
