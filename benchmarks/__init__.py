"""Benchmarks of LDP: latency, parity, rooflines and peers, and the report that is made of their results.

This package is part of the repository, not of the installed wheel; ``ldp bench`` runs it in a checkout.
"""
