"""Aff-Wild2: faces with expression labels."""

from mer_export.data.formats.format import Format

FORMAT = Format(
    name="affwild",
    title="faces with expression labels (Aff-Wild2)",
    reader="mer_export.data.formats.affwild.reader",
    rank=70,
    reads=("faces",),
    directory=True,
)
