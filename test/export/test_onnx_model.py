import numpy as np
import onnx
import pytest
import tiny_networks as tiny
from tiny_exports import TOKENS, config, export

from distill.errors import UserError
from distill.export.model import metadata, quantized, save, shapes_for, step_model
from distill.export.recognizer import OnnxModel


def test_a_model_without_a_step_is_refused():
    student, cnn = tiny.student("fbank"), tiny.student()
    for network, conf, chunk_ms, message in (
        (tiny.teacher(), config(), 480, "not a streaming student"),
        (cnn, {}, 480, "not a streaming student"),
        (student, config(), 100, "multiple of the model's 40 ms"),
        (student, config(), 0, "multiple of the model's 40 ms"),
        (cnn, config(left_ms=None), 480, "left_ms: null"),
    ):
        with pytest.raises(UserError, match=message):
            shapes_for(network, conf, chunk_ms, "exp/student_stream")


def test_caches_and_audio_are_of_a_fixed_size():
    model = onnx.load(export("fbank", hop=0.5) / "student_480ms.onnx")
    onnx.checker.check_model(model, full_check=True)
    sizes = {t.name: [d.dim_value for d in t.type.tensor_type.shape.dim] for t in model.graph.input}
    assert sizes["samples"] == [6 * 640 + 720] and sizes["ahead"] == [6, 32]
    assert sizes["keys_2"] == sizes["values_0"] == [2, 50 + 6, 16] and sizes["conv_1"] == [6, 32]
    assert all(dims and min(dims) > 0 for name, dims in sizes.items() if name not in ("frames", "past"))


def test_int8_quantises_what_pays_and_stays_near(tmp_path):
    network = tiny.student("fbank", width=64, ffn=96)
    shapes = shapes_for(network, config(), 480, "tiny")
    step = step_model(network, shapes)
    small = quantized(step)
    used = {"step": step, "small": small}
    for name, model in used.items():
        save(model, tmp_path / f"{name}.onnx", metadata(network, shapes, TOKENS, "char", 480))
    inputs = {name: {i for node in model.graph.node for i in node.input} for name, model in used.items()}
    kinds = [node.op_type for node in small.graph.node]
    # A feed-forward's two products, two each of attention and convolution, in 3 blocks; the projection; 2 convolutions.
    assert kinds.count("MatMulInteger") == 3 * 8 + 1 + 2
    assert len([n for n in small.graph.node if n.op_type == "MatMul"]) == 3 * 2 + 2 + 1
    assert any("log_mel" in name for name in inputs["small"])
    assert (tmp_path / "small.onnx").stat().st_size < 0.75 * (tmp_path / "step.onnx").stat().st_size
    samples = tiny.speech(shapes.samples).numpy()
    results = []
    for name in used:
        model = OnnxModel(tmp_path / f"{name}.onnx")
        results.append(np.exp(model.step(samples, shapes.chunk, 0, model.first_state())))
    assert 0 < np.abs(results[0] - results[1]).mean() < 0.02


def test_half_a_file_is_never_left(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(onnx.ModelProto(), tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())
