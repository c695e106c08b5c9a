"""The text files of tab, cut from the IEMOCAP release or made up."""

from mer_export.data.formats.format import Format

FORMAT = Format(
    name="tab",
    title="IEMOCAP tokens and context windows as text files (tab)",
    reader="mer_export.data.formats.tab.reader",
    rank=50,
    reads=("context", "tokenizer"),
    synthetic={
        "tab": "mer_export.data.formats.tab.synthetic:SYNTHESISER",
    },
    directory=True,
)
