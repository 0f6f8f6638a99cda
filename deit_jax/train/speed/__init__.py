"""How fast a recipe and its model are on the hardware at hand: `deit-jax benchmark`.

    synthetic.py   a recipe without its data and weights: an `Experiment`, and batches of noise
    programs.py    inference and training as compiled programs that can be timed; `PROGRAMS`
    measure.py     warm-up, rounds interleaved over everything that is measured, out of memory
    rounds.py      medians and quartiles
    parts.py       which part of a model a compiled operation belongs to
    by_part.py     a trace of a program, part by part
    workers.py     processes that are measured beside this one; timm_*.py are timm's
    report.py      hardware and versions, the table for people

To add something else that is measured: a class in `programs.py` and a line in its `PROGRAMS`.
"""
