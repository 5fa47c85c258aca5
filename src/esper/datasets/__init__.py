"""Datasets: small real data that needs no download, and generators, as numpy arrays, split by seed."""

from esper.datasets.characters import Text, characters, windows
from esper.datasets.digits import digits
from esper.datasets.friedman import friedman
from esper.datasets.mnist1d import mnist1d
from esper.datasets.spirals import spirals
from esper.datasets.splits import Examples, Splits

__all__ = ["Examples", "Splits", "Text", "characters", "digits", "friedman", "mnist1d", "spirals", "windows"]
