"""Restored images and blur maps against their targets, beside the paper's tables."""
