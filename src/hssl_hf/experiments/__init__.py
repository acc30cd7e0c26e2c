"""Comparisons of several runs: the search for a head, and studies."""
