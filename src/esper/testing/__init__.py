"""Testing: contract suites for the ports and planted faults, shipped for those who build on Esper."""
