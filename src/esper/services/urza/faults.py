"""Errors for what the database, or its driver, does not do."""

from esper.errors import ContractError, StoreUnavailable


def unstorable(error: BaseException) -> ContractError:
    """Return the error for a value that no database holds."""
    return ContractError(
        "what was sent cannot be stored",
        why=_told(error).partition("\n")[0][:200],
        todo="leave out zero bytes, half characters and numbers of more than 64 bits",
    )


def unanswered(error: BaseException) -> StoreUnavailable:
    """Return the error for an outage."""
    return StoreUnavailable(
        "the library's database does not answer",
        why=_told(error) or type(error).__name__,
        todo="look whether the database, or the disk under it, is full or gone",
    )


def _told(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error)
