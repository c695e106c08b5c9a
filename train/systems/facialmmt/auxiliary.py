"""The auxiliary task of FacialMMT: expressions of faces, a pass of its own before every epoch (section 6)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from mer_export.data.formats.affwild import reader as affwild
from mer_export.data.spec import DataSpec, FaceData
from mer_export.errors import UsageError
from mer_export.models.facialmmt.config import FacialMmtConfig
from train.protocol import AuxiliaryPass
from train.systems.facialmmt.augment import augment_faces
from train.systems.facialmmt.settings import Auxiliary
from train.warm_up import WarmUp


class Expressions:
    """Faces with expression labels, decoded batch by batch."""

    def __init__(self, settings: Auxiliary, config: FacialMmtConfig):
        """Reads the list of faces; raises UsageError where the split has none."""
        assert config.swin is not None
        self.settings = settings
        spec = DataSpec(format="affwild", faces=FaceData(images=True, size=config.swin.image_size))
        self.samples = affwild.read(affwild.root(settings.data), spec).split(settings.split)
        if not self.samples:
            raise UsageError(f"{settings.data}: split {settings.split!r} has no face with an expression")

    def epoch(self, face: nn.Module, run: AuxiliaryPass) -> dict[str, float]:
        """One pass that trains `face` alone; its mean loss as `expression_loss`."""
        size, clip = self.settings.batch, self.settings.clip
        order = run.share([group.tolist() for group in torch.randperm(len(self.samples)).split(size)])
        warm_up = WarmUp(run.optimizer, run.epochs * len(order), self.settings.warm_up, run.epoch * len(order))
        losses = []
        for group in order:
            run.optimizer.zero_grad()
            images, labels = affwild.batch([self.samples[i] for i in group])
            faces = torch.from_numpy(images).to(run.device)
            with run.autocast():
                logits = face(augment_faces(faces) if self.settings.augment else faces)
            loss = functional.cross_entropy(logits.float(), torch.from_numpy(labels).to(run.device))
            run.backward(loss)
            if clip is not None:
                nn.utils.clip_grad_norm_(face.parameters(), clip)
            run.optimizer.step()
            warm_up.next()
            losses.append(loss.detach())
        run.optimizer.zero_grad()
        return {"expression_loss": sum(torch.stack(losses).tolist()) / len(losses)}
