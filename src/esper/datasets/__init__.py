"""Datasets: small real data that needs no download, as numpy arrays, split by seed."""

from esper.datasets.digits import digits
from esper.datasets.spirals import spirals
from esper.datasets.splits import Examples, Splits

__all__ = ["Examples", "Splits", "digits", "spirals"]
