"""Checkpoints that others published, read without running code of theirs, and made ready for export."""
