"""Restoration without a trained network: EBDB, and the deconvolution that follows it and DMENet's map.

Both are **approximate**. No code of EBDB's authors is public in full, and which deconvolution gave the rows of the LDP
paper's Table 1 is not stated; what is here follows the papers' steps. On CPUs, in NumPy, SciPy and OpenCV: edges,
linear solves and recursive filters of a photo's own sizes are no graph for a runtime.
"""
