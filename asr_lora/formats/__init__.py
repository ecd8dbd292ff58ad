"""Formats of other runtimes: a model is written in each, and decoded there."""
