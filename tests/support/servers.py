"""The servers that tests run against, and the databases they get on them."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

# A test may hold a dozen connections; a hundred would only cost memory.
SETTINGS = {"max_connections": 60}

# In memory a test's database takes 0.03 s; on a disk, whose cost is PostgreSQL's 300 small files, 0.1-0.6 s.
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 2 << 30  # free: four servers with their databases take a tenth of it

_numbers = itertools.count(1)


def memory():
    """The folder in memory, if it is large enough and programs may be run from it (Docker's is neither)."""
    try:
        info = os.statvfs(MEMORY)
    except OSError:
        return None
    fits = info.f_bavail * info.f_frsize >= MEMORY_BYTES and not info.f_flag & os.ST_NOEXEC
    return MEMORY if fits and os.access(MEMORY, os.W_OK) else None


class ExternalServer:
    """The server that LOGSLUICE_TEST_DSN names. It is used as it is, and never stopped."""

    def __init__(self, dsn):
        self._dsn = dsn

    def dsn(self, dbname=None):
        return make_conninfo(self._dsn, dbname=dbname) if dbname else self._dsn

    @property
    def version(self):
        with psycopg.connect(self._dsn) as conn:
            return conn.execute("SHOW server_version").fetchone()[0].split()[0]


def create_database(conn, template="template1"):
    """Make a database with a name that no other run has; its name."""
    name = f"logsluice_test_{os.getpid()}_{next(_numbers)}"
    conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
    return name


def drop_database(conn, name):
    """Drop it, whoever is still connected."""
    conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def acting_as(conn, name):
    """Do what follows with the rights of this role."""
    conn.execute(f"SET ROLE {name}")
    try:
        yield
    finally:
        conn.execute("RESET ROLE")
