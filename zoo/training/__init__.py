"""Training: recipes, optimisers, the compiled step, metrics and the loop."""
