"""Demos: networks that grow on real data, each held against the controls that a sceptic would ask for."""
