"""Sound and text by themselves."""
