"""Trains and scores whisper-base on synthetic Dutch, without accounts or a GPU."""
