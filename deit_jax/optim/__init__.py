"""Optimizers, parameter groups and learning-rate schedules, as the published runs had them.

A new optimizer is a function and a line in `optimizers.OPTIMIZERS`; a new learning-rate
curve is a function and a line in `schedules.SCHEDULES`. Which parameters are decayed, frozen or
trained at a smaller rate is decided in `param_groups.py`.
"""

from deit_jax.optim.optimizers import make_optimizer
from deit_jax.optim.param_groups import decay_groups, format_groups
from deit_jax.optim.schedules import Schedule, make_schedule

__all__ = ["Schedule", "decay_groups", "format_groups", "make_optimizer", "make_schedule"]
