"""Detect: streaming statistics without torch: levels, changes, health, trends, plateaus."""
