"""Data: sources open data sets, preprocess says and does what a model sees, the loader makes batches, augment distorts."""
