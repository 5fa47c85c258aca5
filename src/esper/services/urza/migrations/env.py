"""How Alembic reaches the library's database: a connection that it is handed, or ``alembic -x url=...``."""

import asyncio

from alembic import context
from sqlalchemy import Connection, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from esper.errors import ConfigError
from esper.services.urza.base import Base
from esper.services.urza.database import TABLES as TABLES


def migrate(connection: Connection) -> None:
    """Run the migrations that were asked for, in one transaction."""
    # SQLite alters tables by copying them, which Alembic calls batch mode.
    batch = connection.dialect.name == "sqlite"
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True, render_as_batch=batch)
    with context.begin_transaction():
        context.run_migrations()


async def migrate_async(url: str) -> None:
    """Do the same through a driver that waits."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


def address() -> str:
    """Return the database that the command line or the ini file names.

    Raises:
        ConfigError: If neither does.
    """
    found = context.get_x_argument(as_dictionary=True).get("url") or context.config.get_main_option("sqlalchemy.url")
    if not found:
        raise ConfigError(
            "no database to migrate was named",
            todo="alembic -x url=sqlite:////path/to/library.db, or set sqlalchemy.url",
            code="ESP-2330",
        )
    return str(found)


def main() -> None:
    """Migrate, or print the SQL where ``--sql`` asks for it."""
    given = context.config.attributes.get("connection")
    if isinstance(given, Connection):
        migrate(given)
        return
    url = make_url(address())
    if context.is_offline_mode():
        context.configure(url=url, target_metadata=Base.metadata, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
    elif url.get_dialect().is_async:
        asyncio.run(migrate_async(url.render_as_string(hide_password=False)))
    else:
        engine = create_engine(url)
        with engine.begin() as connection:
            migrate(connection)
        engine.dispose()


main()
