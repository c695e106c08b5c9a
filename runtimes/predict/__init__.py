"""From samples to answers: the predictor, the choice of a way to run, files of predictions, metrics."""
