"""Data: sources open it, preprocess makes it what a model sees, the loader batches it, augment distorts it."""
