"""Benchmarks: one file per question; ``python -m benchmarks NAME [--quick] [--json] [--out FILE]``."""
