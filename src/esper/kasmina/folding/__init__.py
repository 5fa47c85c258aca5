"""Leaving Esper: a grown model becomes one whose grafts are torch alone."""
