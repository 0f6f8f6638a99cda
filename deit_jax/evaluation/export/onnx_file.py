"""ONNX files, written with the `onnx` package alone.

The graphs are ours (`onnx_models.py`): converters of jax programs pin versions of jax, flax and
orbax that exclude those of this library.
"""

import json
from typing import Any

import numpy as np

from deit_jax.errors import ConfigError, unknown
from deit_jax.evaluation.export import onnx_models
from deit_jax.models import Model

# The first with LayerNormalization, so that the oldest runtimes take the file.
OPSET = 17
_IR_VERSION = 8


class Graph:
    """A graph under construction; tensors are names."""

    def __init__(self, helpers: Any) -> None:
        self._helpers = helpers
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Appends a node and returns its output; arrays become constants."""
        name = f"{operator}_{len(self.nodes)}"
        names = [self.constant(i) if isinstance(i, np.ndarray) else i for i in inputs]
        node = self._helpers.make_node(operator, names, [name], name=name, **attributes)
        self.nodes.append(node)
        return name

    def constant(self, values: np.ndarray) -> str:
        """A tensor of the file: f32, or int64 for shapes and axes."""
        kind = np.int64 if np.issubdtype(values.dtype, np.integer) else np.float32
        name = f"constant_{len(self.constants)}"
        array = np.asarray(values, kind, order="C")
        data_type = self._helpers.np_dtype_to_tensor_dtype(array.dtype)
        tensor = self._helpers.make_tensor(name, data_type, array.shape, array.tobytes(), raw=True)
        self.constants.append(tensor)
        return name

    def rename(self, tensor: str, name: str) -> None:
        """Gives an output of the graph its name."""
        self.nodes.append(self._helpers.make_node("Identity", [tensor], [name], name=name))


def to_onnx(model: Model, variables: dict[str, Any], description: dict[str, Any]) -> bytes:
    """An ONNX model: `image` f32 [batch, 3, H, W] -> outputs by name; `description` is inside.

    Raises:
      ConfigError: the package is missing, or the family of the model has no graph here.
    """
    try:
        import onnx
    except ImportError:
        raise ConfigError(
            "ONNX files need the package onnx: pip install 'deit_jax[onnx]'"
        ) from None
    if type(model) not in onnx_models.GRAPHS:
        families = [family.__name__ for family in onnx_models.GRAPHS]
        raise unknown("family of models for ONNX", type(model).__name__, families)
    graph, of = Graph(onnx.helper), onnx.helper.make_tensor_value_info
    found = onnx_models.GRAPHS[type(model)](graph, model, variables, "image")
    scores = found["logits"]
    if "dist_logits" in found:
        total = graph("Add", found["logits"], found["dist_logits"])
        scores = graph("Mul", total, np.array([0.5]))
    found["probabilities"] = graph("Softmax", scores, axis=-1)
    for name in description["outputs"]:
        graph.rename(found[name], name)
    kind = onnx.TensorProto.FLOAT
    made = onnx.helper.make_graph(
        graph.nodes,
        description["model"],
        [of("image", kind, description["input"]["shape"])],
        [of(name, kind, ["batch", model.num_classes]) for name in description["outputs"]],
        graph.constants,
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    options = {"ir_version": _IR_VERSION, "producer_name": "deit_jax"}
    whole = onnx.helper.make_model(made, opset_imports=[opset], **options)
    onnx.helper.set_model_props(whole, {"description": json.dumps(description)})
    onnx.checker.check_model(whole, full_check=True)
    return whole.SerializeToString()
