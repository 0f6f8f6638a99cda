"""Weight files of other frameworks: reading, names, writing. Numpy only, no torch.

A file format is a module with a function `read(path, *, ema, arrays) -> (state dict, notes)`
and a line in `READERS`. A state dict has numpy arrays by name, of which only the shapes
matter where `arrays` is False; notes are what `convert.py` wrote beside the arrays, `{}` in
other files. A way to name arrays is a function in `names.NAMINGS`, and what distinguishes it
from the others a line in `detect.MARKS`; names of another family of models are two lists of
rules in `names.FAMILIES`.
"""

from deit_jax.pretrained.formats.safetensors_file import read_safetensors

# By suffix; a file with any other is read as torch's (.pth, .pt, .bin, .ckpt).
READERS = {".safetensors": read_safetensors}
