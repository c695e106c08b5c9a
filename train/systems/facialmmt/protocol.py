"""The training of FacialMMT: cross entropy of utterances, and of faces in passes of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.layers.bert.pretrained import load_pretrained
from mer_export.models.facialmmt.config import FacialMmtConfig
from mer_export.models.facialmmt.network import EndToEnd, MultimodalNetwork
from mer_export.models.facialmmt.swin_names import load_face_recognition
from train.batches import Batch, host_batch, in_batches
from train.config import TrainConfig
from train.model_metrics import LossMean
from train.protocol import Autocast, AuxiliaryPass, Protocol
from train.systems.facialmmt.augment import augment_faces, jitter_faces
from train.systems.facialmmt.auxiliary import Expressions
from train.systems.facialmmt.encoded import EncodedOnce, rows_by_content
from train.systems.facialmmt.settings import FacialMmtSettings
from train.updates import Updates, make_optimizer


class FacialMmtProtocol(Protocol):
    """One training run of any variant."""

    settings: FacialMmtSettings
    mean = LossMean(by_size=True, decimals=None)
    expressions: Expressions | None = None

    def check(self, model: FacialMmtConfig) -> None:
        """Raises UsageError for a setting of another variant."""
        s, variant = self.settings, model.variant
        if s.auxiliary.data is not None and variant != "end_to_end":
            raise UsageError("protocol.auxiliary.data is for model.variant end_to_end, which has both networks")
        if s.augment_faces and variant != "face":
            raise UsageError(
                f"protocol.augment_faces is for model.variant face, this is {variant}: leave it out, "
                "protocol.auxiliary.augment changes the faces of the auxiliary pass"
            )
        if s.by_dialogue and "text" not in model.used:
            raise UsageError(
                "protocol.by_dialogue tells dialogues apart by their text, which this model does not read: leave it out"
            )

    def prepare(self, model: Any, samples: Sequence[Sample], device: torch.device) -> nn.Module:
        """Loads what training starts from; gives the module that training calls."""
        s = self.settings
        text, faces = (source.path for source in s.sources)
        if hasattr(model, "bert"):
            if text is not None:
                load_pretrained(model.bert, text)
            model.bert.requires_grad_(s.train_text_encoder)
        if faces is not None:
            load_face_recognition(getattr(model, "face", model), faces)
        if s.auxiliary.data is not None:
            self.expressions = Expressions(s.auxiliary, model.config)
        return self.prepare_module(model)

    def prepare_module(self, model: Any) -> nn.Module:
        """The network, which encodes equal texts of a batch once where it has texts."""
        return EncodedOnce(model) if _reads_text(model) else model

    def updates(self, model: Any, config: TrainConfig) -> Updates:
        """Groups with a rate of their own, and the accumulation of gradients."""
        return Updates(make_optimizer(config, list(self._groups(model, config))), self.settings.accumulation)

    def choose(self, samples: Sequence[Sample], epoch: int) -> list[Sample]:
        """All items in random order; with `by_dialogue` the utterances of a dialogue stay together."""
        if not self.settings.by_dialogue:
            return super().choose(samples, epoch)
        groups = list(by_dialogue(samples))
        return [s for i in torch.randperm(len(groups)).tolist() for s in groups[i]]

    def given_batches(self) -> str | None:
        """Batches of one dialogue."""
        return "protocol.by_dialogue=true" if self.settings.by_dialogue else None

    def batches(self, samples: Sequence[Sample], size: int, model: Any) -> list[list[Sample]]:
        """Consecutive batches; with `by_dialogue` none holds utterances of two dialogues."""
        groups = by_dialogue(samples) if self.settings.by_dialogue else [list(samples)]
        return [batch for group in groups for batch in in_batches(group, size)]

    def collate(self, samples: Sequence[Sample], contract: Contract) -> Batch:
        """The batch, and which of its rows a step computes."""
        batch = host_batch(samples, contract, self.padding)
        return replace(batch, inputs=batch.inputs | rows_by_content(self.padding.on_host(samples, batch.inputs)))

    def auxiliary_pass(self, model: Any, run: AuxiliaryPass) -> dict[str, float]:
        """The pass over faces with expression labels."""
        return {} if self.expressions is None else self.expressions.epoch(model.face, run)

    def vary(self, batch: Batch) -> Batch:
        """Gumbel noise, and face crops with their colours changed."""
        noise, images = batch.inputs.get("gumbel_noise"), batch.inputs.get("images")
        if noise is not None and self.settings.gumbel:
            batch.inputs["gumbel_noise"] = gumbel(noise)
        if images is not None and self.settings.augment_faces:
            batch.inputs["images"] = augment_faces(images)
        elif images is not None and self.settings.colour_jitter:
            batch.inputs["images"] = jitter_faces(images, self.settings.colour_jitter)
        return batch

    def step(self, module: nn.Module, batch: Batch, autocast: Autocast = nullcontext) -> dict[str, Tensor]:
        """The loss of one batch as `class_loss`, and as `total` what is back-propagated."""
        with autocast():
            output = module(**batch.inputs)
        loss = self.class_loss(batch.rows(output), batch.labels)
        return {"class_loss": loss, "total": self.scaled(loss)}

    def class_loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of logits."""
        return functional.cross_entropy(self.adjusted(output), labels, self.weight)

    def scaled(self, loss: Tensor) -> Tensor:
        """A batch's part in a step."""
        return loss / self.settings.accumulate

    def measured(self, model: Any) -> nn.Module:
        """As training; there is no noise in measuring."""
        return self.prepare_module(model)

    def _groups(self, model: Any, config: TrainConfig) -> Iterable[dict[str, Any]]:
        """The text encoder and the expression model may have rates of their own, the rest that of the run."""
        s, taken = self.settings, set()
        if isinstance(model, EndToEnd):
            params = list(model.face.parameters())
            taken |= {id(p) for p in params}
            yield {"params": params, "lr": s.auxiliary.lr, "weight_decay": s.auxiliary.weight_decay}
        if s.text_encoder_lr is not None and hasattr(model, "bert"):
            params = list(model.bert.parameters())
            taken |= {id(p) for p in params}
            yield {"params": params, "lr": s.text_encoder_lr, "weight_decay": config.weight_decay}
        yield {"params": [p for p in model.parameters() if id(p) not in taken]}


def _reads_text(model: Any) -> bool:
    return isinstance(model, MultimodalNetwork) and "text" in model.used


def by_dialogue(samples: Sequence[Sample]) -> Iterable[list[Sample]]:
    """Consecutive samples with equal text, which is that of the dialogue; in their order."""
    group: list[Sample] = []
    for sample in samples:
        ids = sample.inputs.get("input_ids")
        own = group[0].inputs.get("input_ids") if group else None
        if group and not (ids is not None and own is not None and len(ids) == len(own) and bool((ids == own).all())):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise, from torch's global random stream."""
    return -torch.empty_like(like).exponential_().log()
