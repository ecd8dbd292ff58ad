"""From a corpus to batches: the manifest, its splits, features, the sampler, the collator."""
