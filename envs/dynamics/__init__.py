"""The worlds: one file each, and the arithmetic they share. Nothing here needs gymnasium or torch."""
