"""The error rates as a module of Hugging Face's evaluate."""
