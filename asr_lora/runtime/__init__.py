"""What every program needs: errors, files, messages, the processes of one run."""
