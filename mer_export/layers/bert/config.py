"""Shape of a BERT or RoBERTa encoder; needs no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BertConfig(BaseModel):
    """Defaults are bert-base-uncased; bert-base-chinese has `vocabulary` 21128. `roberta` gives those of RoBERTa.

    `first_position` is the row of the table of positions that the first token reads, the next token reads the next
    row; `positions` counts the rows below it too. With `segments` 0 there is no table of token types.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int = Field(30522, ge=1)
    hidden: int = Field(768, ge=1)
    layers: int = Field(12, ge=1)
    heads: int = Field(12, ge=1)
    feed_forward: int = Field(3072, ge=1)
    positions: int = Field(512, ge=2)
    first_position: int = Field(0, ge=0)
    segments: int = Field(2, ge=0)
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
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        special = max(self.first_token, self.last_token, self.unknown_token, self.padding_token)
        if special >= self.vocabulary:
            raise ValueError(f"token {special} is outside the vocabulary of {self.vocabulary}")
        if self.longest < 2:
            raise ValueError(f"positions {self.positions} leave no room for two tokens from {self.first_position} on")
        return self

    @property
    def longest(self) -> int:
        """The longest sequence that there are positions for, special tokens included."""
        return self.positions - self.first_position


ROBERTA: dict[str, int | float] = {
    "vocabulary": 50265,
    "positions": 514,
    "first_position": 2,  # fairseq counts positions from the padding token's id on, which takes row 1 itself
    "segments": 1,
    "epsilon": 1e-5,
    "first_token": 0,
    "last_token": 2,
    "unknown_token": 3,
    "padding_token": 1,
}


def roberta(**changes: int | float) -> BertConfig:
    """RoBERTa (Liu et al., 2019) of the base size, but for `changes`; as fairseq stores it `segments` is 0."""
    return BertConfig.model_validate(ROBERTA | changes)
