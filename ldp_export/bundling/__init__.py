"""From a checkpoint to a bundle: graphs, parity, quantisation, engines."""
