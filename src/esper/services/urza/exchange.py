"""A library as files that any other can take in: JSON Lines for what is known, and the bytes beside them.

Taking in goes the way that everything else goes: designs are checked, bytes have their digest, and a kernel opens with its
report only. Jobs, outcomes, keys and the audit log stay where they are.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from esper.contracts.kernel import MOST_TAGS, BlueprintContract, CompiledKernelArtifact, KernelStatus, ValidationResult
from esper.contracts.store import MAX_PAGE, BlueprintQuery, BlueprintRecord, KernelQuery, KernelRecord
from esper.errors import ConfigError, ContractError, NotFound
from esper.runtime.files import own_folder, written_whole
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.kernel_manager import KernelManager

Line = TypeVar("Line", bound=BaseModel)

BLUEPRINTS, KERNELS, BLOBS = "blueprints.jsonl", "kernels.jsonl", "blobs"


@dataclass(frozen=True)
class Exchanged:
    """What was written or taken in.

    Attributes:
        blueprints: Designs.
        kernels: Kernels that are validated.
        size_bytes: Their bytes.
    """

    blueprints: int
    kernels: int
    size_bytes: int


class KernelLine(BaseModel):
    """One kernel, with the report that opens it."""

    kernel: KernelRecord
    report: ValidationResult


async def export_library(manager: KernelManager, folder: Path) -> Exchanged:
    """Write every blueprint, and every validated kernel with its report and its bytes.

    Args:
        manager: The library.
        folder: A folder that does not exist or is empty.

    Raises:
        ConfigError: If the folder is not empty or cannot be written.
    """
    if own_folder(folder, argument="DIR") and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", todo="choose another folder", code="ESP-2580")
    blobs = LocalBlobs(folder / BLOBS)
    kernels = size = 0
    with written_whole(folder / KERNELS) as file:
        async for kernel in _kernels(manager):
            await blobs.put_stream(kernel.kernel_id, kernel.size_bytes, await manager.stream(kernel.kernel_id))
            line = KernelLine(kernel=kernel, report=await manager.get_report(kernel.kernel_id))
            file.write(line.model_dump_json().encode() + b"\n")
            kernels, size = kernels + 1, size + kernel.size_bytes
    blueprints = 0
    with written_whole(folder / BLUEPRINTS) as file:
        async for blueprint in _blueprints(manager):
            file.write(blueprint.model_dump_json().encode() + b"\n")
            blueprints += 1
    return Exchanged(blueprints, kernels, size)


async def import_library(manager: KernelManager, folder: Path) -> Exchanged:
    """Take in what `export_library` wrote; what is there already stays as it is, so that it can be done again.

    Raises:
        ContractError: If a line is not what it must be, or bytes are not what was said.
        InvalidBlueprint: If a design breaks a rule.
        NotFound: If bytes are missing.
    """
    for name, kind in ((BLUEPRINTS, BlueprintRecord), (KERNELS, KernelLine)):
        for _ in _lines(folder / name, kind):  # a line that is wrong is told of before anything is taken in
            pass
    blueprints = kernels = size = 0
    for line in _lines(folder / BLUEPRINTS, BlueprintRecord):
        for contract in _contracts(line):
            await manager.store_blueprint(contract)
        blueprints += 1
    for line in _lines(folder / BLUEPRINTS, BlueprintRecord):  # a parent may stand after its child
        if line.parent_id is not None:
            await manager.store_blueprint(next(_contracts(line)), line.parent_id)
    blobs = LocalBlobs(folder / BLOBS)
    for entry in _lines(folder / KERNELS, KernelLine):
        await _take_in(manager, blobs, entry)
        kernels, size = kernels + 1, size + entry.kernel.size_bytes
    return Exchanged(blueprints, kernels, size)


async def _take_in(manager: KernelManager, blobs: LocalBlobs, line: KernelLine) -> None:
    kernel = line.kernel
    try:
        if (await manager.get_kernel(kernel.kernel_id)).status is not KernelStatus.PENDING_VALIDATION:
            return
    except NotFound:
        pass
    if line.report.kernel_id != kernel.kernel_id:
        raise ContractError(f"the report of {kernel.kernel_id[:19]} is about another kernel", code="ESP-3220")
    await manager.upload(kernel.kernel_id, kernel.size_bytes, blobs.stream(kernel.kernel_id))
    await manager.register_uploaded(
        CompiledKernelArtifact(
            artifact_id=kernel.kernel_id,
            blueprint_id=kernel.blueprint_id,
            kernel_binary=b"",
            compilation_time_ms=kernel.compilation_time_ms,
            target_device=kernel.target_device,
            optimization_level=kernel.optimization_level,
            metadata={"compiler_version": kernel.compiler_version},
        )
    )
    await manager.store_report(line.report)


def _contracts(record: BlueprintRecord) -> Iterator[BlueprintContract]:
    """Yield what stores a blueprint, again for as many tags as are taken at once."""
    for start in range(0, max(1, len(record.tags)), MOST_TAGS):
        yield BlueprintContract(
            blueprint_id=record.blueprint_id,
            name=record.name,
            architecture_ir=record.architecture_ir,
            tags=record.tags[start : start + MOST_TAGS],
            metadata=record.metadata,
        )


async def _blueprints(manager: KernelManager) -> AsyncIterator[BlueprintRecord]:
    cursor = None
    while True:
        page = await manager.search_blueprints(BlueprintQuery(limit=MAX_PAGE, cursor=cursor))
        for blueprint in page.blueprints:
            yield blueprint
        if (cursor := page.cursor) is None:
            return


async def _kernels(manager: KernelManager) -> AsyncIterator[KernelRecord]:
    cursor = None
    while True:
        page = await manager.search(KernelQuery(status=KernelStatus.VALIDATED, limit=MAX_PAGE, cursor=cursor))
        for kernel in page.kernels:
            yield kernel
        if (cursor := page.cursor) is None:
            return


def _lines(path: Path, kind: type[Line]) -> Iterator[Line]:
    try:
        with path.open("rb") as lines:  # as text it would be cut at separators that JSON leaves in its strings
            for number, line in enumerate(lines, 1):
                yield _parsed(line, kind, f"line {number} of {path}")
    except OSError as error:
        raise ContractError(
            f"{path} cannot be read", why=str(error), todo="give what esper library export wrote"
        ) from error


def _parsed(line: bytes, kind: type[Line], where: str) -> Line:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise ContractError(f"{where} is no {kind.__name__}", code="ESP-3220") from error
