"""Products in int8: matrix products of a float32 graph, computed with integers.

Weights have a scale for each column, fixed here. Inputs have a scale for each row, which the graph
computes: the score of an image depends on no other image, as it would with one scale for a batch.
All operators are of the standard set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from skanomaly_vit.onnx._file import require

#: Largest integers. A sum of two products stays below 2**15 with them, in which processors without
#: VNNI add; with 127 for weights too, scores would differ between kinds of processors.
_LARGEST_INPUT, _LARGEST_WEIGHT = 127, 63

_ZERO_POINT = 128

#: Products of the maps stay in float32: they are few, and nothing recalibrates them.
_LEFT_OUT = "maps."

_SMALLEST = 1e-30  # of a row of zeros

# Names of constants that all products share.
_RANGE, _FLOOR, _ONE, _ZERO, _NO_ZERO, _LAST = (
    f"int8.{name}" for name in ("range", "floor", "one", "zero", "no_zero", "last")
)


def compute_in_int8(proto: Any) -> None:
    """Rewrite the products of a graph with float32 weights, in place.

    Raises
    ------
    ValueError
        If there are none.
    """
    products = _Products(proto.graph)
    if not products.names:
        raise ValueError(
            "no matrix product of this backbone has weights of float32, so there is nothing to "
            "compute in int8; export without quantize"
        )
    nodes = [new for node in proto.graph.node for new in products.rewritten(node)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    del proto.graph.value_info[:]  # types of the former graph
    _let_fuse(proto.graph)


class _Products:
    """The products of a graph, and their weights.

    Attributes
    ----------
    names : set of str
        First output of each product.
    """

    def __init__(self, graph: Any) -> None:
        self._onnx = require("onnx")
        self._graph = graph
        self._weights = {
            weight.name: weight
            for weight in graph.initializer
            if weight.data_type == self._onnx.TensorProto.FLOAT
            and len(weight.dims) == 2
            and not weight.name.startswith(_LEFT_OUT)
        }
        self.names = {
            node.output[0]
            for node in graph.node
            if node.op_type == "MatMul" and node.input[1] in self._weights
        }
        self._rounded: set[str] = set()  # inputs and weights that are integers already
        if self.names:
            self._add_constants()

    def rewritten(self, node: Any) -> Iterator[Any]:
        """A node, or those that take its place."""
        if node.output[0] not in self.names:
            yield node
            return
        given, weight = node.input
        if given not in self._rounded:
            self._rounded.add(given)
            yield from self._round_rows(given)
        if weight not in self._rounded:
            self._rounded.add(weight)
            self._round_columns(weight)
        name = node.output[0]
        make = self._onnx.helper.make_node
        yield make("MatMulInteger", [f"{given}.int8", weight, _ZERO, _NO_ZERO], [f"{name}.sums"])
        yield make("Cast", [f"{name}.sums"], [f"{name}.float"], to=self._onnx.TensorProto.FLOAT)
        yield make("Mul", [f"{name}.float", f"{weight}.scale"], [f"{name}.columns"])
        yield make("Mul", [f"{name}.columns", f"{given}.largest"], [name])

    def _round_rows(self, given: str) -> Iterator[Any]:
        """Nodes that round each row of an input to integers of its own scale."""
        make = self._onnx.helper.make_node
        yield make("Abs", [given], [f"{given}.abs"])
        yield make("ReduceMax", [f"{given}.abs", _LAST], [f"{given}.max"], keepdims=1)
        yield make("Max", [f"{given}.max", _FLOOR], [f"{given}.largest"])
        yield make("Div", [_RANGE, f"{given}.largest"], [f"{given}.factor"])
        yield make("Mul", [given, f"{given}.factor"], [f"{given}.scaled"])
        yield make("QuantizeLinear", [f"{given}.scaled", _ONE, _ZERO], [f"{given}.int8"])

    def _round_columns(self, name: str) -> None:
        values = self._onnx.numpy_helper.to_array(self._weights[name])  # [inputs, outputs]
        largest = np.abs(values).max(axis=0)
        scale = np.where(largest > 0, largest, 1) / _LARGEST_WEIGHT
        rounded = np.rint(values / scale).astype(np.int8)
        self._weights[name].CopyFrom(self._onnx.numpy_helper.from_array(rounded, name))
        # The integers of the inputs are a multiple of their share of the largest one.
        self._add(f"{name}.scale", (scale / _LARGEST_INPUT).astype(np.float32))

    def _add_constants(self) -> None:
        self._add(_RANGE, np.float32(_LARGEST_INPUT))
        self._add(_FLOOR, np.float32(_SMALLEST))
        self._add(_ONE, np.float32(1))
        self._add(_ZERO, np.uint8(_ZERO_POINT))
        self._add(_NO_ZERO, np.int8(0))
        self._add(_LAST, np.array([-1], np.int64))

    def _add(self, name: str, values: Any) -> None:
        array = np.asarray(values)
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(array, name))


def _let_fuse(graph: Any) -> None:
    """Write ``x * (0.5 * y)`` as ``(x * y) * 0.5``, the form of GELU that ONNX Runtime fuses.

    The values are the same: a product with a half is exact.
    """
    to_array = require("onnx").numpy_helper.to_array
    scalars = {each.name: to_array(each) for each in graph.initializer if not each.dims}
    maker = {node.output[0]: node for node in graph.node}
    uses = [name for node in graph.node for name in node.input]
    for node in graph.node:
        half = maker.get(node.input[1]) if node.op_type == "Mul" else None
        if half is None or half.op_type != "Mul" or uses.count(half.output[0]) != 1:
            continue
        constant, other = half.input
        if constant in scalars and scalars[constant] == 0.5:
            half.input[:] = [node.input[0], other]
            node.input[:] = [half.output[0], constant]
