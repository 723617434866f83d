"""Training: the loop, recipes, and one file for each network that is trained."""
