"""Building blocks of the networks: backbone, projection heads, decoder, position embeddings, residual branches, EMA."""
