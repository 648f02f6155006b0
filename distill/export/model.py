"""ONNX files of a streaming student: the step for one chunk length, in float32 and with int8 weights."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch

from distill.configuration import ChunkConf, frames_of_chunk, read_conf
from distill.errors import UserError
from distill.export.step import Shapes, StreamStep, shapes_of
from distill.files import atomic_write
from distill.models.student import Student

OPSET, IR_VERSION = 17, 8  # old enough for the onnxruntime within sherpa-onnx and for those of phones


def shapes_for(network: Any, config: Mapping[str, Any], chunk_ms: int, origin: str | Path) -> Shapes:
    """The sizes of a step for chunks of ``chunk_ms``, look-ahead included; a model that cannot have one is refused."""
    conf = read_conf(ChunkConf, "chunk_conf", config.get("chunk_conf") or None)
    if not isinstance(network, Student) or conf is None:
        raise UserError(f"{origin}: not a streaming student (chunk_conf); give exp/student_stream")
    frame_ms = network.encoder_frame_ms
    chunk, left, lookahead = conf.in_frames(frames_of_chunk(chunk_ms, frame_ms), frame_ms)
    if left is None:
        raise UserError(
            f"{origin}: sees all of the past (chunk_conf.left_ms: null); a cache needs an end, such as 6000"
        )
    return shapes_of(network, chunk, left, lookahead)


def step_model(network: Student, shapes: Shapes) -> onnx.ModelProto:
    """:class:`StreamStep` as ONNX."""
    step = StreamStep(network, shapes).eval()
    inputs, outputs = step.names()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have its newer exporter used, which needs onnxscript
        torch.onnx.export(
            step,
            step.first_inputs(),
            Path(folder, "step.onnx"),
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=False,
        )
        model = onnx.load(Path(folder, "step.onnx"))
    model.ir_version = IR_VERSION
    return model


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with 8-bit weights in its matrix products, whose other factor is quantised as it comes.

    Not so the log-mel, whose range is too large, and the prediction layer, which costs little. Weights use 7 of the 8
    bits: with 8, processors that have AVX2 and no VNNI saturate in the sums, or are slower where weights are unsigned.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = {tensor.name for tensor in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and weights & set(n.input[1:2])]
    kept = [node.name for node in products if node.op_type == "MatMul"]
    kept.append(f"{products[-1].name}_MatMul")  # as onnxruntime renames it, before it looks for it
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "int8.onnx")
        quantize_dynamic(
            model,
            output,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=kept,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            per_channel=True,
        )
        return onnx.load(output)


def metadata(
    network: Student, shapes: Shapes, token_list: Sequence[str], token_type: str, chunk_ms: int
) -> dict[str, str]:
    """What a recogniser has to know besides the network."""
    values: dict[str, Any] = {
        "model_type": "distillw2v2_streaming_ctc",
        "sample_rate": 16000,
        "frame_ms": network.frame_ms,
        "chunk_ms": chunk_ms,
        **asdict(shapes),
        "priming": shapes.priming,
        "leading": shapes.leading,
        "token_type": token_type,
        "tokens": json.dumps(list(token_list), ensure_ascii=False),
    }
    return {key: str(value) for key, value in values.items()}


def save(model: onnx.ModelProto, path: Path, properties: Mapping[str, str]) -> None:
    """Write a model with its metadata, whole or not at all."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(properties))
    with atomic_write(path, "wb") as stream:
        stream.write(model.SerializeToString())
