"""Reference: the interpreter of blueprints in numpy float64, written from the formulas: the independent oracle of validation."""

from esper.reference.formulas import register_formula, unregister_formula
from esper.reference.interpreter import buffers_after, evaluate

__all__ = ["buffers_after", "evaluate", "register_formula", "unregister_formula"]
