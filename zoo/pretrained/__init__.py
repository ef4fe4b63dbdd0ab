"""Weights of other projects as variables of ours: one file per source, each saying which tensor is which leaf."""
