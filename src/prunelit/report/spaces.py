"""One colour a space, in every figure."""

SPACES = {"embedding": "#4C72B0", "logit": "#55A868", "probability": "#C44E52"}
