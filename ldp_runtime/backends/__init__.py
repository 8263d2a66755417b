"""What runs single graphs in sessions: OpenVINO and ONNX Runtime."""
