"""The forge over HTTP: how it is, and runs of kernels."""
