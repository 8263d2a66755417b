"""Benchmarks of LDP: latency, parity, rooflines, peers and more, and the report of their results.

They are part of the repository, not of the installed wheel: ``python -m benchmarks`` lists them.
"""
