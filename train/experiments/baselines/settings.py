"""What a baseline is made of and what is chosen of it. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from train.config import Strict


class Linear(Strict):
    """Logistic regression of classes and labels, ridge regression of scores, on pooled inputs (scikit-learn).

    An utterance's sequences are pooled to their mean and deviation over time; utterances of a dialogue stand alone.
    """

    kind: Literal["linear"] = "linear"
    strengths: tuple[float, ...] = Field((1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), min_length=1)
    """The candidates: 1 / weight of the squared coefficients (C of scikit-learn) on standardised inputs."""
    choose_on: str | None = "dev"
    """Split whose headline metric chooses; None where there is one candidate alone."""

    @model_validator(mode="after")
    def _decidable(self) -> Linear:
        if self.choose_on is None and len(self.strengths) > 1:
            raise ValueError("choose_on is null: give one value of strengths")
        return self

    def only(self, chosen: Any) -> Linear:
        """The same with nothing left to choose."""
        return self.model_copy(update={"strengths": (chosen,)})


class Recurrent(Strict):
    """Bidirectional GRU over the utterances of a dialogue, or over the steps of each sequence of an utterance."""

    kind: Literal["recurrent"] = "recurrent"
    width: int = Field(64, ge=1)
    """Of the states of each direction."""
    pool: Literal["mean", "last"] = "mean"
    """What is read of an utterance's states: their mean over time, or those of the last step alone, as MTEE does."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Of inputs and states."""
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    batch: int = Field(32, ge=1)
    """Dialogues, or utterances."""
    epochs: int = Field(20, ge=1)
    """The candidates are 1 to this many."""
    choose_on: str | None = "dev"
    """Split whose headline metric chooses; None trains for all epochs."""

    def only(self, chosen: Any) -> Recurrent:
        """The same with nothing left to choose."""
        return self.model_copy(update={"epochs": chosen, "choose_on": None})


Baseline = Annotated[Linear | Recurrent, Field(discriminator="kind")]


def parse_baseline(values: Any) -> Baseline:
    """Checked settings; what is not said has its default."""
    return TypeAdapter(Baseline).validate_python(values)
