"""From text and speech to token ids."""
