"""How utterances lie in a Parquet file: one row each, the rows of a dialogue together.

    dialogue string | index int32 | utterance string | split string | speaker int64 | sentence string
    speaker_name string                                   who that is, in all dialogues, where the data name speakers
    label int64, score float32 or labels list<float32>    what is known of it; null in unlabelled data
    text, audio, vision list<float32>                     the vectors of an utterance, one after the other; null: none
    further inputs list<int64> or list<float32>           as the model takes them, see `dialogues.READY`
    images list<string>                                   files of its face images
    recording string, start float64, end float64          where its features come from: a file, and its part (s)

The schema metadata key `mer` holds as JSON the width of each list's vectors (`dims`), class names, speakers, splits,
the unit of a sample and where the data came from. Row groups end between dialogues and between splits, so a reader
holds one row group at most. In version 1 the vectors of a text are columns of their own, `text_0` to `text_<k-1>`.
"""

from __future__ import annotations

KEY = b"mer"
VERSION = 2
REQUIRED = ("dialogue", "index", "utterance", "split", "speaker", "label")
GROUP_BYTES = 1 << 22
"""Features of a row group: what a streaming reader holds at a time, decoded."""
BATCH_ROWS = 512
