"""Inference forms: what the forge makes of a kernel beside its trainable bytes, for whoever only runs it."""
