"""Benchmarks of LDP: latency, parity, rooflines, Figure 1 and more, and the report of their results.

They are part of the repository, not of the installed wheel: ``python -m benchmarks`` lists them.
"""
