"""Post-training methods as TRL trainers."""
