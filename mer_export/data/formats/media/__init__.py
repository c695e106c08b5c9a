"""A directory of recordings, one utterance each."""

from mer_export.data.formats.format import OPEN, Format

FORMAT = Format(
    name="media",
    title="directory of recordings, one utterance each",
    reader="mer_export.data.formats.media.reader",
    rank=100,
    reads=OPEN,
    open=True,
    directory=True,
)
