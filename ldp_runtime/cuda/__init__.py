"""The CUDA path: kernels, what launches them, and the devices that run them. Importing it needs no GPU."""
