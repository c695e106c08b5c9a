"""Training of RoBERTa + Speech-BERT + TAB: margin loss, attention penalty, newbob, batch-averaged metrics."""

from train.systems.tab.settings import TabSettings

RECIPES = {
    "tab": (TabSettings, "train.systems.tab.protocol:TabProtocol", "train.systems.tab.own:tab"),
}
"""Checked `protocol:` section, protocol class, and what own data make of the recipe, of each system."""
