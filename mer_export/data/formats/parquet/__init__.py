"""One Parquet file, one row per utterance."""

from mer_export.data.formats.format import OPEN, Format

FORMAT = Format(
    name="parquet",
    title="columnar file of mer data convert",
    reader="mer_export.data.formats.parquet.reader",
    rank=80,
    reads=OPEN,
    open=True,
    parts="mer_export.data.formats.parquet.parts",
)
