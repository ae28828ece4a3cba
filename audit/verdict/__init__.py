"""The verdict on a pair: the evidence of each leg, and the rule that decides over it."""
