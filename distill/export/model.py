"""ONNX models of a streaming student's step for one chunk length, in float32 and with int8 weights."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from distill.configuration import ChunkConf, frames_of_chunk, read_conf
from distill.errors import UserError
from distill.export.batch_step import BatchStep
from distill.export.sherpa import sherpa_metadata, sherpa_model
from distill.export.slot_step import SlotStep
from distill.export.step import Shapes, StreamStep, shapes_of
from distill.files import atomic_write
from distill.models.fbank import FbankFrontEnd
from distill.models.student import Student

OPSET, IR_VERSION = 17, 8  # old enough for the onnxruntime within sherpa-onnx and for those of phones


def shapes_for(network: Any, config: Mapping[str, Any], chunk_ms: int, origin: str | Path) -> Shapes:
    """Sizes of a step for chunks of ``chunk_ms``, which include the look-ahead.

    Args:
        config: the training's configuration, of which ``chunk_conf`` is used.
        origin: where the model was loaded from, for messages.

    Raises:
        UserError: the model does not stream, its history is unlimited, or ``chunk_ms`` does not fit its frames.
    """
    conf = read_conf(ChunkConf, "chunk_conf", config.get("chunk_conf") or None)
    if not isinstance(network, Student) or conf is None:
        raise UserError(f"{origin}: not a streaming student (chunk_conf); give exp/student_stream")
    frame_ms = network.encoder_frame_ms
    chunk, left, lookahead = conf.in_frames(frames_of_chunk(chunk_ms, frame_ms), frame_ms)
    if left is None:
        raise UserError(
            f"{origin}: has unlimited history (chunk_conf.left_ms: null); the export needs a limit, such as 6000"
        )
    return shapes_of(network, chunk, left, lookahead)


def step_model(network: Student, shapes: Shapes) -> onnx.ModelProto:
    """Export a student's :class:`StreamStep`."""
    step = StreamStep(network, shapes).eval()
    inputs, outputs = step.names()
    return _traced(step, step.first_inputs(), inputs, outputs)


def slot_model(network: Student, shapes: Shapes) -> onnx.ModelProto:
    """Export a student's :class:`SlotStep`."""
    step = SlotStep(network, shapes).eval()
    return _traced(step, step.first_inputs(), *step.names(), step.dynamic_axes())


def sherpa_models(
    network: Student, shapes: Shapes, steps: Mapping[str, onnx.ModelProto]
) -> dict[str, tuple[onnx.ModelProto, dict[str, str]]]:
    """The models for sherpa-onnx with the metadata that it reads, by kind as in ``steps``: float32 and perhaps int8."""
    if not isinstance(network.front_end, FbankFrontEnd):
        wrapped = {kind: sherpa_model(step, shapes) for kind, step in steps.items()}
        return {kind: (model, sherpa_metadata(model)) for kind, model in wrapped.items()}
    step = BatchStep(network, shapes).eval()
    model = _traced(step, step.first_inputs(2), *step.names(), step.dynamic_axes())
    return {kind: (model if kind == "float32" else quantized(model), step.metadata()) for kind in steps}


def _traced(
    step: torch.nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_axes: Mapping[str, dict[int, str]] | None = None,
) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is deprecated; the newer one needs onnxscript
        torch.onnx.export(
            step,
            example,
            Path(folder, "step.onnx"),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=dynamic_axes,
            opset_version=OPSET,
            dynamo=False,
        )
        model = onnx.load(Path(folder, "step.onnx"))
    model.ir_version = IR_VERSION
    return model


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose matrix products have int8 weights and quantise their other factor at run time.

    Excluded are the log-mel, whose dynamic range is too large, and the prediction layer, which costs little. Weights
    use 7 of the 8 bits: with all 8, sums saturate on processors with AVX2 but without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = {tensor.name for tensor in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and weights & set(n.input[1:2])]
    kept = [node.name for node in products if "log_mel" in node.name]
    renamed = products[-1].op_type == "Gemm"  # onnxruntime does so before it looks up these names
    kept.append(f"{products[-1].name}_MatMul" if renamed else products[-1].name)
    root = logging.getLogger()

    def not_advice(record: logging.LogRecord) -> bool:  # to preprocess the model, which changes nothing here
        return "pre-processing" not in record.getMessage()

    root.addFilter(not_advice)
    try:
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
    finally:
        root.removeFilter(not_advice)


def metadata(
    network: Student, shapes: Shapes, token_list: Sequence[str], token_type: str, chunk_ms: int
) -> dict[str, str]:
    """Metadata of the ONNX model, which a recogniser needs besides the network."""
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
    """Write a model with its metadata; nothing is left after an error."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(properties))
    with atomic_write(path, "wb") as stream:
        stream.write(model.SerializeToString())
