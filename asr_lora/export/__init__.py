"""A tuned model as files for other tools: one room a format, each with how it is written and how it hears."""
