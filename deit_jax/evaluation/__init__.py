"""Evaluation of one or both heads on whole data sets, agreement between models, predictions."""
