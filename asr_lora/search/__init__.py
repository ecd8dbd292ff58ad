"""Hyperparameter search by dev WER (Optuna)."""
