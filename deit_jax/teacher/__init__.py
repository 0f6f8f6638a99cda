"""The frozen teacher of a distilled run.

`model.py` says which model it is, without its weights where its file tells, and `live.py` loads it.
To add a kind of teacher: a function that returns a `Teacher`.
"""

from deit_jax.teacher.live import Teacher, make_teacher

__all__ = ["Teacher", "make_teacher"]
