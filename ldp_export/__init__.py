"""The PyTorch side of LDP: reference network, simulator, training, evaluation and export of bundles."""
