"""The pickles of MMSA, and utterances like theirs."""

from mer_export.data.formats.format import Format

FORMAT = Format(
    name="mmsa",
    title="feature pickles of MMSA (MOSI, MOSEI, SIMS)",
    reader="mer_export.data.formats.mmsa.reader",
    rank=30,
    reads=("dataset",),
    synthetic={
        "emt": "mer_export.data.formats.mmsa.synthetic:SYNTHESISER",
        "mult": "mer_export.data.formats.mmsa.synthetic:SYNTHESISER",
        "tfr_net": "mer_export.data.formats.mmsa.synthetic:SYNTHESISER",
    },
    by_split=True,
)
