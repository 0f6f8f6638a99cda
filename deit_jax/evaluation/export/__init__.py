"""Trained models as files that run without this library: `jax.export` and ONNX.

`artifact.py` has the table `FORMATS` and what is written beside a model; `onnx_file.py` writes
ONNX, `onnx_models.py` the graph of each family. To add a format: a function from (model,
variables, description) to the bytes of the file, and a line in `FORMATS`. A new family of models is
exported to jax as it is; for ONNX it needs a function and a line in `onnx_models.GRAPHS`.
"""

from deit_jax.evaluation.export.artifact import FORMATS, describe, description_path, export

__all__ = ["FORMATS", "describe", "description_path", "export"]
