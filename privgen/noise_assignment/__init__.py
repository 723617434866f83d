"""Assign noise to the images of a training batch, so that each image gets noise that is near to it."""
