"""Raw things to features, frozen. An encoder is a bundle without labels; running one needs neither torch nor
transformers.

`encoder.Encoder` is the noun, `config` what an encoder says of itself, `inputs` how text, sound and pictures become its
arrays. Each package here is one kind of network, as those of `models` are.
"""

FOLDER = "encoders"
"""Where a bundle keeps them."""
