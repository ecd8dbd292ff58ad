"""The web pages: base and fine-tuned model compared, sentences recorded."""
