"""A table that a benchmark measured, as it is kept for a page."""

from __future__ import annotations

from mer_export.bundle import Strict
from mer_export.markdown import table


class KeptTable(Strict):
    """The cells of a table as text, and what they are of."""

    command: str
    """That made it."""
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> list[str]:
        """As Markdown."""
        return [self.caption, "", *table(self.header, self.rows)]
