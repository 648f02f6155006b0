"""Weights of 4 bits, in onnxruntime's operator."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from distill.bench.int4 import in_blocks, int4_model


def product(weights: np.ndarray) -> onnx.ModelProto:
    """x (T, K) times (N, K) weights and a bias, and then a second product, which stays as it is."""
    rows, columns = weights.shape
    tensors = {"w": weights, "b": np.arange(rows, dtype=np.float32), "last": np.eye(rows, dtype=np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="first", transB=1),
        helper.make_node("MatMul", ["h", "last"], ["y"], name="second"),
    ]
    values = [helper.make_tensor_value_info(n, 1, ["T", s]) for n, s in (("x", columns), ("y", rows))]
    initializers = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("columns", "block"), [(96, 32), (93, 32), (384, 128), (250, 128)])
def test_products_are_those_of_weights_rounded_to_their_blocks(columns, block):
    random = np.random.default_rng(0)
    weights = random.standard_normal((48, columns)).astype(np.float32)
    values, scales, offsets = in_blocks(weights, block)
    model = int4_model(product(weights), block)
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits", "MatMul"]
    codes = np.stack((values & 15, values >> 4), -1).reshape(48, -1, block).astype(np.float32)
    zero = np.stack((offsets & 15, offsets >> 4), -1).reshape(48, -1)[:, : codes.shape[1], None]
    rounded = ((codes - zero) * scales[..., None]).reshape(48, -1)[:, :columns]
    assert np.abs(rounded - weights).max() <= 0.51 * scales.max()
    x = random.standard_normal((5, columns)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    expected = x @ rounded.T + np.arange(48)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected - np.arange(48)).max()  # x is quantised, too
