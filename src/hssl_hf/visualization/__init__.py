"""Figures of what a model has learned and seen, and the curves of its training."""
