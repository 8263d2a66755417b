"""The common parts of all benchmarks: options, processes, machine, sample, timing, results and their tables."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""

REPORTS = ROOT / "benchmarks" / "reports"
"""Where results go by default."""

SAMPLE = ROOT / "samples" / "motorcycle"
"""The held-out pair: ``left.png``, ``right.png``, ``target.png``."""
