"""Training: from a resolved config to an `Experiment`, the step, and the loop around it.

`schema.py` names the builder of each config section; `experiment.py` builds what a run needs;
`setup.py` checks it all; `loop.py` runs it. A new metric of a step goes into `step.py`, a new
thing to do between steps into `loop.py`.
"""
