"""The processes of a run and their devices: how they find each other, and who holds what.

`environments.py` finds out how many processes there are, by the variables of the machine and its
metadata server; a new environment is a function and a line in its `ENVIRONMENTS`. `processes.py`
connects them, `line.py` is the connection by which they meet, agree and end together, and
`sharding.py` builds the mesh and says where arrays live. `host_memory.py` sets what a process does
with freed memory.
"""

from deit_jax.distributed.host_memory import keep_freed_arrays
from deit_jax.distributed.line import JoinError
from deit_jax.distributed.processes import ALONE, Processes, check_joined, join

__all__ = ["ALONE", "JoinError", "Processes", "check_joined", "join", "keep_freed_arrays"]
