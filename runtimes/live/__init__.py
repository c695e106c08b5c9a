"""Many live dialogues at a time: a bounded table of them, what stays of them on disk, and utterances line by line."""
