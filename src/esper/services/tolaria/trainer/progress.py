"""What is shown while a run goes on: a bar on a terminal, plain lines in a log."""

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from esper.kasmina.quiet import preserved_rng

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """Shows where a run stands."""

    def step(self, step: int, epoch: int) -> None:
        """Show an optimizer step."""
        ...

    def say(self, text: str) -> None:
        """Show one line."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Silent:
    """Shows nothing."""

    def step(self, step: int, epoch: int) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End nothing."""


class Lines(Silent):
    """Shows plain lines, as logs want them.

    Args:
        console: Where.
    """

    def __init__(self, console: "Console") -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Show one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Bar(Lines):
    """Shows a bar below the lines.

    Args:
        console: A terminal.
        steps: Planned length of the run.
    """

    def __init__(self, console: "Console", steps: int) -> None:
        super().__init__(console)
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = RichProgress(*columns, console=console)
        self._task = self._bar.add_task("epoch 1", total=steps)

    def step(self, step: int, epoch: int) -> None:
        """Move the bar; a rollback moves it back."""
        self._bar.update(self._task, completed=step, description=f"epoch {epoch + 1}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()


def progress_for(wanted: bool | None, *, steps: int, console: "Console | None" = None) -> Progress:
    """Return what shows a run.

    Args:
        wanted: None is a bar on a terminal and lines elsewhere, True lines anywhere but on one, False nothing.
        steps: Planned length of the run.
        console: Where; standard output by default. Rich honours ``NO_COLOR``.
    """
    if wanted is False:
        return Silent()
    with preserved_rng():  # rich draws when it is imported
        from rich.console import Console

        console = console or Console()
        return Bar(console, steps) if console.is_terminal else Lines(console)


def line_of(step: int, steps: int, values: Mapping[str, float]) -> str:
    """Return the line of one validation."""
    told = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f"step {step}/{steps}  {told}"
