"""Signals: measurements of where a model wants to grow, one per file."""

DEFAULT = "bottleneck"
"""The one that the controller's rule was measured with (decision 0007)."""
