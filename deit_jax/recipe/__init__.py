"""What a resolved config amounts to, before any data or weights are read: durations, costs, traps.

`recipe.py` makes the `Recipe` that a run is built from, `summary.py` prints it, and
`checks.py` finds what is legal but seldom meant: a new warning is a function in `checks.CHECKS`.
"""
