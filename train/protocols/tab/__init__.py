"""Training of RoBERTa + Speech-BERT + TAB: margin loss, attention penalty, newbob, batch-averaged metrics."""
