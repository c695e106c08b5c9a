"""vq-wav2vec with k-means quantisation: a waveform becomes pairs of code-book indices, the words of Speech-BERT.

Paper: Baevski, Schneider, Auli, "vq-wav2vec: Self-Supervised Learning of Discrete Speech Representations", ICLR 2020.
Public code: fairseq, `wav2vec.py`. Its group norms average over the whole utterance, so padding or cutting a waveform
changes every token: it runs on one utterance at its true length.
"""
