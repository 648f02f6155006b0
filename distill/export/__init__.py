"""The streaming student as ONNX files for onnxruntime and sherpa-onnx, and a recogniser that needs no torch."""
