"""Other runtimes than torch: ONNX Runtime in its place, and OpenVINO that takes over from it."""
