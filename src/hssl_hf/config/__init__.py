"""Recipes: strict YAML files that describe an experiment."""
