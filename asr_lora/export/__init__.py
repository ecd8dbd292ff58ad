"""A fine-tuned model for other runtimes, verified in each."""
