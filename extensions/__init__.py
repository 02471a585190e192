"""Methods from papers as native citizens of the libraries people already use: see README.md for the rooms.

Importing this imports nothing: each room is its own import, e.g. ``from extensions.sb3 import StochDQN``.
"""
