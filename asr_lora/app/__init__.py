"""The web pages: base and fine-tuned model compared, texts corrected, sentences recorded."""
