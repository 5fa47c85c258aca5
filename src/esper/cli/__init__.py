"""Command line: one file per verb; it builds objects and holds no logic."""

import sys

from esper.errors import ConfigError, ContractError, EsperError, NotFound, Rejected, Unavailable

EXIT_CODES: tuple[tuple[type[EsperError], int], ...] = (
    (ConfigError, 2),
    (ContractError, 2),
    (NotFound, 3),
    (Rejected, 4),
    (Unavailable, 5),
    (EsperError, 1),
)
"""The first class that fits gives the exit code."""


def main() -> None:
    """Run the command line; what Esper refuses is said in its own sentence, without a trace."""
    from esper.cli.app import app

    try:
        app()
    except EsperError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(exit_code(error))


def exit_code(error: EsperError) -> int:
    """Return the exit code of an error."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
