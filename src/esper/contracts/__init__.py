"""Contracts: the records that cross a process border, one definition each, without torch and without I/O."""
