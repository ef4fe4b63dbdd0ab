"""Runs, checkpoints and data in object stores, over the protocols of S3 and Google Cloud Storage on loopback."""
