"""How a training uses a store that is elsewhere."""

import ssl
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from esper.errors import ConfigError
from esper.services.clients.messages import TransportConfig
from esper.services.clients.urza_client import UrzaClient


class StoreConfig(BaseModel):
    """The part ``store`` of the settings: ``[store]`` and ``ESPER_STORE_…``.

    Attributes:
        key: API key; without one only a store on this machine answers.
        ca_file: Certificates that are trusted in place of the system's own.
        disk_bytes: What kernels may take on this machine's disk; those that were used longest ago go first.
        memory_bytes: What kernels may take in memory.
        forge_workers: Builds at a time that the training's own process does for the store, whoever asked for them; 0 where a
            forge serves the store.
        transport: Limits of its calls.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: SecretStr | None = None
    ca_file: Path | None = None
    disk_bytes: int = Field(default=2 << 30, ge=0)
    memory_bytes: int = Field(default=256 << 20, ge=0)
    forge_workers: int = Field(default=1, ge=0, le=256)
    transport: TransportConfig = TransportConfig()

    def client(self, url: str) -> UrzaClient:
        """Return a client of the store at an address, not opened yet.

        Raises:
            ConfigError: If the address or the file of certificates cannot be used.
        """
        return UrzaClient(url, key=self.key, config=self.transport, tls=self._trust())

    def _trust(self) -> ssl.SSLContext | None:
        if self.ca_file is None:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigError(
                f"{self.ca_file} holds no certificates", why=str(error), todo="set ESPER_STORE_CA_FILE to a PEM file"
            ) from error


__all__ = ["StoreConfig"]
