"""Nissa: observability; counts what the parts tell each other."""
