"""Texts that people correct: what is corrected, in what order, where each decision is kept, and what was learned."""
