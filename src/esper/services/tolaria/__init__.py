"""Tolaria: the trainer; makes a model grow inside anyone's training loop, and undoes it to the bit."""
