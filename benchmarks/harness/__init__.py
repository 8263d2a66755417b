"""What all benchmarks share: processes, machine, timing, results."""
