"""Evaluation: accuracy of every head output on whole data sets, agreement, predictions.

`evaluate.py` sums over a batch (training), `predictions.py` keeps the predictions of every
image (`deit-jax evaluate`, through `evaluator.py`), `classify.py` takes single files, `export/`
writes files that run without this library.
A new head output: a function and a line in `heads.HEADS`. A new evaluation set: an opener and
a line in `datasets.SETS`.
"""
