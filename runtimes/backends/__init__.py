"""One small class per runtime, all of the shape in `session`; which there are stands in `table`."""
