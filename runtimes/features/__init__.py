"""Recordings and transcripts through encoders into a data set: in order, in parts that stay done, in bounded memory."""
