"""Your own features: an utterance table and arrays beside it."""

from mer_export.data.formats.format import OPEN, Format

FORMAT = Format(
    name="dialogue_table",
    title="utterance table (csv, tsv, parquet) and arrays (npz, npy)",
    reader="mer_export.data.formats.table.reader",
    rank=10,
    reads=(
        *OPEN,
        *("table", "dialogue", "order", "utterance", "speaker", "label", "score", "split", "sentence", "row", "inputs"),
        *("recording", "start", "end"),
        *("encoding", "separator"),
    ),
    open=True,
    directory=True,
)
