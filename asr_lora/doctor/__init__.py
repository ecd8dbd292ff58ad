"""Checks a run before it costs anything."""
