"""Names of consumer groups that end with something."""

RUN_GROUPS = "execution-service."
"""How the name of a run's own group begins; the run's id follows."""


def run_group(run_id: str) -> str:
    """Return the group in which a run reads: one of its own, or what is meant for it would reach another run."""
    return RUN_GROUPS + run_id
