"""Writing a grown model in a format that other programs read, and holding what was written against the model."""

import copy
import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from esper.errors import ConfigError, NotFound, Rejected
from esper.exporting.formats import FORMATS, Format
from esper.exporting.inputs import Inputs, run, variants
from esper.exporting.report import Check, ExportReport
from esper.kasmina import fold
from esper.kasmina.folding.fold import TOLERANCE, difference
from esper.kasmina.model import MorphableModel
from esper.kasmina.quiet import preserved_rng
from esper.runtime.files import own_folder


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str,
    example: object = None,
    verify: bool = True,
    fixed_batch: bool = False,
) -> ExportReport:
    """Write a model, grown or not, so that it can be used without Esper.

    Files are written aside, checked, and then put in place: what fails its check is not left behind.

    Args:
        model: Any module; a grown one is folded first. It is left as it is.
        path: Folder for the files; it is made.
        format: ``safetensors`` (weights of the folded model), ``pt2`` (``torch.export``), ``onnx``, or ``py`` (Python source
            with safetensors). The last three are for evaluation; ``py`` can be trained where its notes do not say otherwise.
        example: One input batch, as ``esper.wrap`` takes it; ``safetensors`` does without if it is not checked.
        verify: Whether to run the files and the model on the example, on random and extreme inputs, and on other batch sizes.
        fixed_batch: Whether the batch always has the size of the example's; otherwise it may have any.

    Raises:
        ConfigError: If there is no such format, the example is missing, or the model cannot be written so; it says why.
        Rejected: If what was written computes something else.
    """
    kind = _format(format)
    inputs = _inputs(example, kind, verify)
    folder = own_folder(Path(path))
    with preserved_rng(), TemporaryDirectory(dir=folder, prefix=".export-") as aside:
        alone = _folded(model, example)
        notes = kind.write(alone, Path(aside), inputs, not fixed_batch)
        checks = _checks(model, alone, kind, Path(aside), inputs, not fixed_batch) if verify and inputs else ()
        for name in kind.files:
            (Path(aside) / name).replace(folder / name)
    return ExportReport(
        format=format,
        files=tuple(str(folder / name) for name in kind.files),
        batch=str(inputs.batch) if fixed_batch and inputs else "any",
        notes=tuple(notes),
        checks=checks,
        tolerance=TOLERANCE,
    )


def verify_export(
    model: nn.Module, path: str | os.PathLike[str], *, format: str, example: object, fixed_batch: bool = False
) -> tuple[Check, ...]:
    """Hold files that ``export`` wrote against the model.

    Args:
        model: The model that was exported.
        path: Folder of the files.
        format: Their format.
        example: One input batch.
        fixed_batch: Whether they were written for its size alone.

    Returns:
        Every comparison.

    Raises:
        NotFound: If a file is missing.
        Rejected: If they compute something else, or cannot be read.
    """
    kind = _format(format)
    inputs = _inputs(example, kind, True)
    missing = [name for name in kind.files if not (Path(path) / name).is_file()]
    if missing:
        raise NotFound(f"no {', '.join(missing)} in {path}", todo="esper.export writes it", code="ESP-5110")
    with preserved_rng():
        alone = _folded(model, example)
        return _checks(model, alone, kind, Path(path), inputs, not fixed_batch) if inputs else ()


def _checks(
    model: nn.Module, alone: nn.Module, kind: Format, folder: Path, inputs: Inputs, any_batch: bool
) -> tuple[Check, ...]:
    cases = list(variants(inputs, any_batch=any_batch))
    expected = [run(model, each, f"inputs called {name!r}") for name, each in cases]
    try:
        found: Sequence[object] = kind.run(alone, folder, [each for _, each in cases])
    except (ConfigError, Rejected):
        raise
    except Exception as error:
        raise Rejected(
            f"the {kind.name} files do not run",
            why=f"{type(error).__name__}: {str(error)[:600]}",
            todo="export again; if they depend on the size of the batch, say so (fixed_batch, --fixed-batch)",
            code="ESP-7420",
        ) from error
    checks = tuple(
        Check(name, difference(before, after)) for (name, _), before, after in zip(cases, expected, found, strict=True)
    )
    worst = max(checks, key=lambda check: check.difference)
    if not worst.difference <= TOLERANCE:
        raise Rejected(
            f"the {kind.name} files compute something else",
            why=f"on the inputs called {worst.inputs!r} they differ by {worst.difference:.2e}; {TOLERANCE:g} is allowed",
            todo="the files are damaged, or the model's code depends on what an export cannot see",
            code="ESP-7421",
        )
    return checks


def _folded(model: nn.Module, example: object) -> nn.Module:
    alone = fold(model, example) if isinstance(model, MorphableModel) else copy.deepcopy(model)
    return alone.eval()


def _inputs(example: object, kind: Format, verify: bool) -> Inputs | None:
    if example is not None:
        return Inputs.of(example)
    if verify or kind.needs_example:
        raise ConfigError(
            f"{kind.name} needs an example",
            why="the model is run on it" if verify else "the format is a record of one run",
            todo="give example= (--example) one input batch as the training loop does",
            code="ESP-2621",
        )
    return None


def _format(name: str) -> Format:
    if name in FORMATS:
        return FORMATS[name]
    near = get_close_matches(name, FORMATS, n=1)
    raise ConfigError(
        f"there is no format {name!r}",
        why=f"formats are {', '.join(FORMATS)}",
        todo=f"did you mean {near[0]}?" if near else "",
        code="ESP-2620",
    )
