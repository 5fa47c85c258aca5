"""Tezzeret: the compile forge that builds and validates kernels in supervised child processes."""
