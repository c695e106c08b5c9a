"""Layers that several systems share, in the form that every exporter takes and padding cannot touch."""
