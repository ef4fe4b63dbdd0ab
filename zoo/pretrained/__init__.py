"""Weights of other projects: registry, download, safe readers of weight files, and one key map per source."""
