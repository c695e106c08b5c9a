"""The files of MTEE, and utterance sets like theirs."""

from mer_export.data.formats.format import Format

FORMAT = Format(
    name="mtee",
    title="utterance sets of MTEE (CMU-MOSEI, IEMOCAP, CMU-MOSI) and their caches",
    reader="mer_export.data.formats.mtee.reader",
    rank=40,
    reads=("dataset", "emotions", "trim_zeros"),
    synthetic={
        "mtee": "mer_export.data.formats.mtee.synthetic:SYNTHESISER",
    },
    directory=True,
    by_split=True,
)
