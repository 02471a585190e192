"""Offline data: collected here, since nothing need be downloaded, or read from Minari and D4RL files."""
