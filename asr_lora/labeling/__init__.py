"""Recordings to a corpus: clips cut at pauses, decoded twice, and the rules that keep or drop their texts."""
