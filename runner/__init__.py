"""Runs a TensorFlow job in the exact version it was written for, and continues it from its last checkpoint."""

__version__ = "0.1.0"
