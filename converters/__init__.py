"""ONNX to torch.fx, and the surgery's result back to ONNX."""
