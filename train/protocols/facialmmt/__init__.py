"""How FacialMMT is trained: passes over expressions and over utterances in turn."""
