"""The bundle: a folder with graphs, text embeddings and the manifest that hashes them."""
