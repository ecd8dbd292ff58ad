"""The training loop: trainer, callbacks, dev decoding, checkpoints."""
