"""The web page that compares base and fine-tuned model."""
