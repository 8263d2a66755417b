"""Seconds and memory of the whole chain, backend by backend."""
