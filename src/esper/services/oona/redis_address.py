"""Addresses of Redis: one server, what sentinels watch over, or a cluster."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from esper.errors import ConfigError

_SINGLE = ("redis", "rediss", "unix")
_MANY = {f"{scheme}+{kind}": (scheme, kind) for scheme in ("redis", "rediss") for kind in ("sentinel", "cluster")}
_PORTS = {"sentinel": 26379, "cluster": 6379}
_FORMS = (
    "redis://host:6379/0, rediss://…, unix:///path, redis+sentinel://host:26379,host:26379/name/0 "
    "or redis+cluster://host:6379,host:6379"
)


class Kind(StrEnum):
    """Who answers at an address."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, repr=False)
class Address:
    """Where Redis is.

    Attributes:
        kind: Who answers.
        urls: Address of the server, of each sentinel, or of each node of a cluster to begin with, as redis-py reads it.
        service: What the sentinels call the master.
        scheme: ``redis`` or ``rediss``, for servers that are found.
        userinfo: User and password for servers that are found, with a closing ``@``, or nothing.
        suffix: Database and options for servers that are found.
    """

    kind: Kind
    urls: tuple[str, ...]
    service: str = ""
    scheme: str = ""
    userinfo: str = ""
    suffix: str = ""

    def server(self, host: str, port: int) -> str:
        """Return the address of a server that was found."""
        name = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{self.userinfo}{name}:{port}{self.suffix}"


def read_address(url: str) -> Address:
    """Return the parts of an address.

    Raises:
        ConfigError: If it is none that is known, or a file that it names cannot be read.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme in _SINGLE:
        return Address(Kind.SINGLE, (url,))
    if scheme not in _MANY:
        raise ConfigError(
            "the address of Redis cannot be used", why=f"it begins with {scheme!r:.40}", todo=f"write {_FORMS}"
        )
    plain, kind = _MANY[scheme]
    parts = urlsplit(url)
    userinfo, at, hosts = parts.netloc.rpartition("@")
    options = dict(parse_qsl(parts.query))
    service, _, database = parts.path.strip("/").partition("/")
    if not hosts or (kind == "sentinel") != bool(service):
        raise ConfigError(
            "the address of Redis cannot be used",
            why="hosts, or the name of the master, do not fit",
            todo=f"write {_FORMS}",
        )
    login = _sentinel_login(options)
    suffix = f"/{database}" if database else ""
    query = f"?{urlencode(options)}" if options else ""
    named = [host if ":" in host.rpartition("]")[2] else f"{host}:{_PORTS[kind]}" for host in hosts.split(",")]
    entry = login if kind == "sentinel" else userinfo + at
    urls = tuple(f"{plain}://{entry}{host}{query}" for host in named)
    return Address(Kind(kind), urls, service, plain, userinfo + at, suffix + query)


def password_in(file: Path) -> str:
    """Return the password that a file holds.

    Raises:
        ConfigError: If the file cannot be read.
    """
    try:
        return file.read_text().strip()
    except OSError as error:
        raise ConfigError("the password of Redis cannot be read", why=str(error), todo="mend password_file") from error


def _sentinel_login(options: dict[str, str]) -> str:
    """Take what sentinels ask for out of the options; they have users of their own."""
    user, file = options.pop("sentinel_username", ""), options.pop("sentinel_password_file", "")
    password = password_in(Path(file)) if file else ""
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
