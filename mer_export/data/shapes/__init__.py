"""From rows to samples, whatever the source: one module per shape of sample."""
