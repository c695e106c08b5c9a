"""Rewrites of ONNX graphs: recurrent nodes, merged products, shared weights, reduced precision."""
