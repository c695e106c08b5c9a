"""JSON lines: one dialogue per line."""

from mer_export.data.formats.format import OPEN, Format

FORMAT = Format(
    name="jsonl",
    title="one dialogue per line",
    reader="mer_export.data.formats.jsonl.reader",
    rank=90,
    reads=OPEN,
    open=True,
    parts="mer_export.data.formats.jsonl.parts",
)
