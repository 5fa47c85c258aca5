"""Gates: what a stored kernel must show before it may be grafted, one file for each question."""
