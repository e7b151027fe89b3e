"""Training: the recipe, the loop, and the stages of a run."""
