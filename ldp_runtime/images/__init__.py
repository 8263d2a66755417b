"""Image files: read, checked, written; pairs of files; figures and pictures of an image."""
