"""``python -m esper.cli`` is ``esper``."""

from esper.cli import main

main()
