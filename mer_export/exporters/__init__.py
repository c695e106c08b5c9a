"""From a bundle's PyTorch model to files that runtimes load: one module per format, one way to make a variant."""

from mer_export.exporters.export import export_variant
from mer_export.exporters.format import DEFAULT_OPSET, export_formats

__all__ = ["DEFAULT_OPSET", "export_formats", "export_variant"]
