"""The run folder and the commands that fill it."""
