"""The commands of ``ldp-export``, one module each."""
