"""Runtime: clocks, the background loop and the bridge to training, supervised child processes."""
