"""Networks that train: one epoch loop, fine-tuning from the cache, the baseline from scratch, comparison."""
