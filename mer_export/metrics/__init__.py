"""What a task is measured by: classes, label sets, sentiment scores, exactly as the papers compute them.

`find` knows every metric by name: unit, direction, print form. `measure.measure` computes those of a task.
"""

from mer_export.metrics.metric import Family, Metric
from mer_export.metrics.table import FAMILIES, METRICS, find

__all__ = ["FAMILIES", "METRICS", "Family", "Metric", "find"]
