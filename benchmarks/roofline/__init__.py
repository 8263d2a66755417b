"""Floors of the chain on GPUs and on this CPU."""
