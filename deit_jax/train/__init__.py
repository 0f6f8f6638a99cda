"""Training: from a resolved config (`schema.py`) to an `Experiment`, the step, and the loop around it."""
