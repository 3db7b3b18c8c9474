"""Other runtimes than torch: its networks exported to ONNX, and ONNX Runtime that runs them."""
