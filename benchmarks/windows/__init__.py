"""What CLIP's windows and prompts cost, and what they do to the blur map."""
