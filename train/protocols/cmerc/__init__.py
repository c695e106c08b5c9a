"""CMERC and plain M3NET training: class loss, calibration, contrast, curriculum."""
