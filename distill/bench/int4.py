"""Weights of 4 bits in onnxruntime beside float32 and int8, with students of full size (random weights).

    python -m distill.bench.int4

Products with weights are onnxruntime's MatMulNBits: each block of a row's weights has a scale and an offset, and the
other factor is quantised to int8 row by row at run time. Steps take turns; the least processor time of each counts.
"""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from distill.bench.parts import CONFIG, TOKENS, benchmark_parser, random_student, write_json
from distill.export import model as onnx_model
from distill.export.recognizer import OnnxModel

CHUNK_MS = 480
BLOCKS = (32, 128)
WARM_UP = 14  # steps, after which the history of 6 s is full
INT8_PRODUCTS = 4  # "accuracy level" of MatMulNBits


def in_blocks(weights: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, K) weights as 4 bits, two in a byte: (N, blocks, block / 2), scales (N, blocks), offsets (N, blocks / 2)."""
    rows, columns = weights.shape
    blocks = -(-columns // block)
    padded = np.pad(weights, ((0, 0), (0, blocks * block - columns))).reshape(rows, blocks, block)
    least, most = np.minimum(padded.min(2), 0), np.maximum(padded.max(2), 0)
    scales = np.maximum((most - least) / 15, np.float32(1e-12)).astype(np.float32)
    offsets = np.rint(-least / scales).astype(np.uint8)
    values = np.clip(np.rint(padded / scales[..., None]) + offsets[..., None], 0, 15).astype(np.uint8)
    offsets = np.pad(offsets, ((0, 0), (0, blocks % 2)))
    return values[..., ::2] | values[..., 1::2] << 4, scales, offsets[:, ::2] | offsets[:, 1::2] << 4


def int4_model(model: onnx.ModelProto, block: int) -> onnx.ModelProto:
    """A copy with weights of 4 bits, in the products whose weights :func:`distill.export.model.quantized` quantises.

    The matrices of the log-mel have 16 bits, which onnxruntime widens when it loads them. Where blocks would fill up a
    row by a tenth or more, they are half as long.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights]
    for node in products[:-1]:
        name = node.input[1]
        matrix = numpy_helper.to_array(weights[name])
        if "log_mel" in node.name:
            weights[name].CopyFrom(numpy_helper.from_array(matrix.astype(np.float16), f"{name}_half"))
            graph.node.insert(0, helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
            continue
        if not any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
            matrix = matrix.T
        size = block if -matrix.shape[1] % block < 0.1 * matrix.shape[1] else block // 2
        parts = zip(("values", "scales", "offsets"), in_blocks(matrix, size), strict=True)
        tensors = [numpy_helper.from_array(np.ascontiguousarray(part), f"{name}_{kind}") for kind, part in parts]
        graph.initializer.extend(tensors)
        bias = ["", node.input[2]] if len(node.input) > 2 else []
        inputs = [node.input[0], *(tensor.name for tensor in tensors), *bias]
        sizes = {"N": matrix.shape[0], "K": matrix.shape[1], "bits": 4, "block_size": size}
        node.CopyFrom(
            helper.make_node(
                "MatMulNBits", inputs, list(node.output), name=node.name, domain="com.microsoft",
                accuracy_level=INT8_PRODUCTS, **sizes,
            )
        )  # fmt: skip
        graph.initializer.remove(weights[name])
    for node in graph.node:
        node.ClearField("name")
    copy.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return copy


def measure(models: dict[str, OnnxModel], rounds: int) -> dict[str, float]:
    """Least milliseconds of processor time of a step, by model."""
    audio = 0.05 * np.random.default_rng(0).standard_normal((rounds + WARM_UP + 1) * CHUNK_MS * 16).astype(np.float32)
    streams = {kind: model.new_stream() for kind, model in models.items()}
    least = dict.fromkeys(models, float("inf"))
    for stream in streams.values():
        stream.receive(audio)
    for number in range(WARM_UP + rounds):
        for kind, stream in streams.items():
            began = time.process_time()
            stream.compute()
            if number >= WARM_UP:
                least[kind] = min(least[kind], 1000 * (time.process_time() - began))
    return least


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--students", nargs="+", default=["f"], help="names in conf/students (default: f)")
    parser.add_argument("--rounds", type=int, default=100, help="(default: 100)")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.students:
        network = random_student(name)
        shapes = onnx_model.shapes_for(network, CONFIG, CHUNK_MS, name)
        about = onnx_model.metadata(network, shapes, TOKENS, "word", CHUNK_MS)
        step = onnx_model.step_model(network, shapes)
        models = {"float32": step, "int8": onnx_model.quantized(step)}
        models |= {f"int4, blocks of {block}": int4_model(step, block) for block in BLOCKS}
        with tempfile.TemporaryDirectory() as folder:
            paths = {kind: Path(folder, f"{number}.onnx") for number, kind in enumerate(models)}
            for kind, path in paths.items():
                onnx_model.save(models[kind], path, about)
            least = measure({kind: OnnxModel(path) for kind, path in paths.items()}, args.rounds)
            sizes = {kind: os.path.getsize(path) / 1e6 for kind, path in paths.items()}
        for kind, milliseconds in least.items():
            rows.append({"student": name, "weights": kind, "mb": sizes[kind], "ms": milliseconds})
            print(f"{name:3} {kind:20} {sizes[kind]:6.1f} MB, {milliseconds:6.2f} ms a chunk", flush=True)
    write_json(args.output, {"date": f"{datetime.date.today():%d %B %Y}", "rows": rows})


if __name__ == "__main__":
    main()
