"""The files of FacialMMT, and conversations like theirs."""

from mer_export.data.formats.format import Format

FORMAT = Format(
    name="facialmmt",
    title="features, texts and faces of FacialMMT (MELD), and its caches",
    reader="mer_export.data.formats.facialmmt.reader",
    rank=60,
    reads=("faces", "modalities", "packing", "tokenizer"),
    synthetic={
        "facialmmt": "mer_export.data.formats.facialmmt.synthetic:SYNTHESISER",
    },
    directory=True,
)
