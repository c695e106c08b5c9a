"""The pickles of CMERC and M3NET, and dialogues like theirs."""

from mer_export.data.formats.format import Format

FORMAT = Format(
    name="cmerc",
    title="feature pickles of CMERC and M3NET (IEMOCAP, MELD)",
    reader="mer_export.data.formats.cmerc.reader",
    rank=20,
    reads=("dataset",),
    synthetic={
        "cmerc": "mer_export.data.formats.cmerc.synthetic:SYNTHESISER",
    },
    directory=True,
    by_split=True,
)
