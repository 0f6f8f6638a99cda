"""The processes of a run and their devices: how they find each other, and who holds what.

`join.py` connects the processes; `sharding.py` builds the mesh and says where arrays live.
A new way for processes to find each other goes into `join.py`.
"""

from deit_jax.distributed.join import initialize

__all__ = ["initialize"]
