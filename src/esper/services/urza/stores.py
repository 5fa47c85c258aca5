"""Opens the library that the settings of the service name."""

from typing import TYPE_CHECKING

from esper.ports import BlobStore, Clock
from esper.runtime.files import own_folder
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.kernel_manager import KernelManager

if TYPE_CHECKING:
    from esper.services.urza.rest.config import UrzaConfig


async def opened(config: "UrzaConfig", clock: Clock | None = None) -> KernelManager:
    """Open the library.

    Raises:
        ConfigError: If the folder cannot be written, or the address of the database cannot be used.
        StoreUnavailable: If the database does not answer.
    """
    if config.database_url is None:
        url = f"sqlite:///{own_folder(config.root) / 'library.db'}"
    else:
        url = config.database_url.get_secret_value()
    return await KernelManager.at(url, _blobs(config), clock=clock)


def _blobs(config: "UrzaConfig") -> BlobStore:
    if config.s3_bucket is None:
        return LocalBlobs(own_folder(config.root) / "blobs")
    from esper.services.urza.s3_blobs import S3Blobs, S3Config

    return S3Blobs(
        S3Config(
            bucket=config.s3_bucket,
            endpoint=config.s3_endpoint,
            region=config.s3_region,
            access_key_id=config.s3_access_key_id,
            secret_access_key=config.s3_secret_access_key,
        )
    )
