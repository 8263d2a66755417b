"""Many pairs: found in folders or a CSV, restored with reading, computing and writing overlapped, resumable."""
