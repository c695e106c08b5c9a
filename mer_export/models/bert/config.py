"""Shape of a BERT encoder; needs no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BertConfig(BaseModel):
    """Defaults are bert-base-uncased; bert-base-chinese has `vocabulary` 21128."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int = Field(30522, ge=1)
    hidden: int = Field(768, ge=1)
    layers: int = Field(12, ge=1)
    heads: int = Field(12, ge=1)
    feed_forward: int = Field(3072, ge=1)
    positions: int = Field(512, ge=2)
    segments: int = Field(2, ge=1)
    epsilon: float = Field(1e-12, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    first_token: int = Field(101, ge=0)
    last_token: int = Field(102, ge=0)
    unknown_token: int = Field(100, ge=0)
    padding_token: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> BertConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is no multiple of heads {self.heads}")
        special = max(self.first_token, self.last_token, self.unknown_token, self.padding_token)
        if special >= self.vocabulary:
            raise ValueError(f"token {special} is outside the vocabulary of {self.vocabulary}")
        return self
