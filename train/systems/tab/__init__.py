"""Training of RoBERTa + Speech-BERT + TAB: margin loss, attention penalty, newbob, batch-averaged metrics."""

from train.systems.tab.settings import TabSettings

RECIPES = {
    "tab": (TabSettings, "train.systems.tab.protocol:TabProtocol"),
}
"""Checked `protocol:` section and protocol class of each system."""
