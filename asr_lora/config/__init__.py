"""Settings: their types and rules, run names, and how conf/ is composed."""
