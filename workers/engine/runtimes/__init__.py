"""Other runtimes than torch: its networks exported to ONNX, ONNX Runtime that runs them, and TensorRT engines."""
