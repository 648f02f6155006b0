"""Large beside students: what the page makes of the figures."""

from distill.bench.page import large


def test_students_are_compared_with_large_in_each_runtime():
    rows = [
        {"network": "large", "runtime": "torch", "mb": 1261.0, "rtf": 0.4},
        {"network": "large", "runtime": "onnxruntime", "mb": 1261.0, "rtf": 0.2},
        {"network": "f", "runtime": "onnxruntime float32", "mb": 83.5, "rtf": 0.02},
    ]
    lines = large({"date": "1 May 2026", "processor": "one", "rows": rows, "remarks": ["Twice."]})
    assert "| F | onnxruntime float32 | 83.5 | 0.0200 | 20.0x | 10.0x |" in lines and "Twice." in lines
