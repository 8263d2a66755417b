"""The commands of ``ldp``, one module each."""
