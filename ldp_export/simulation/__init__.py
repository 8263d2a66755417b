"""Simulated dual-pixel pairs, from an image and its depth."""
