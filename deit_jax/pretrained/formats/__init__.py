"""Weight files of other frameworks: reading, names, writing. Numpy only, no torch."""
