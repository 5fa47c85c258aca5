"""Signals: measurements of where a model is too narrow, one per file."""
