"""Builds of TensorRT engines, and what graphs and engines hold."""
