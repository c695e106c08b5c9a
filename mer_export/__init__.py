"""What a multimodal emotion recognition model is, and how it becomes an artefact that a runtime loads."""

__version__ = "0.1.0"
