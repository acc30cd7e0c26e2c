"""From encoded bytes to the views of a step: sources, streams, decoding, augmentation, masks, batches."""
