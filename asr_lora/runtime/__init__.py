"""What every program needs."""
