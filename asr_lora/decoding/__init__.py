"""Clips and recordings to text."""
