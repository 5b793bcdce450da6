"""
Fixtures: a PostgreSQL for the session, a database of its own for each test, a server that a test may kill.

Nothing is skipped for want of a server: the test fails and says what to install. LOGSLUICE_TEST_DSN names a server to
use instead of starting one; its role must be allowed to make databases.
"""

from __future__ import annotations

import os
from datetime import timezone

import hypothesis
import psycopg
import pytest

from logsluice import schema
from logsluice.devserver import EmbeddedPostgres
from logsluice.errors import DevServerError
from support.servers import SETTINGS, ExternalServer, create_database, drop_database, memory

# No example has a deadline, and making the first ones neither: on a busy machine they may take as long as they like.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def cluster():
    """A cluster that no server runs on: the others copy it, three times as quick as making one."""
    try:
        server = EmbeddedPostgres(within=memory()).prepare()
    except DevServerError as error:
        pytest.fail(str(error), pytrace=False)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_server(request):
    """The session's server. Tests share it: stop, kill or reconfigure `own_server` instead."""
    named = os.environ.get("LOGSLUICE_TEST_DSN")
    if named:
        yield ExternalServer(named)
        return
    with EmbeddedPostgres(template=request.getfixturevalue("cluster"), settings=SETTINGS) as server:
        yield server


@pytest.fixture(scope="session")
def admin(postgres_server):
    """The session's connection that makes and drops databases."""
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as conn:
        yield conn


@pytest.fixture(scope="session")
def template_database(postgres_server, admin):
    """Name of a database that holds the schema, made once, copied for each test."""
    name = create_database(admin)
    with psycopg.connect(postgres_server.dsn(name), autocommit=True) as conn:
        schema.migrate(conn)
    yield name
    drop_database(admin, name)


@pytest.fixture
def dsn(postgres_server, admin, template_database):
    """A fresh database with the schema in it."""
    name = create_database(admin, template_database)
    yield postgres_server.dsn(name)
    drop_database(admin, name)


@pytest.fixture
def now(conn):
    """Noon of today, by the server of the test's `conn`: partitions of so many days ago are told apart by whole days."""
    now = conn.execute("SELECT now()").fetchone()[0].astimezone(timezone.utc)
    return now.replace(hour=12, minute=0, second=0, microsecond=0)


@pytest.fixture
def empty_dsn(postgres_server, admin):
    """A fresh database with nothing in it."""
    name = create_database(admin)
    yield postgres_server.dsn(name)
    drop_database(admin, name)


@pytest.fixture
def own_server(cluster):
    """A server of this test alone, to kill, stop and start again: its databases hold nothing yet."""
    with EmbeddedPostgres(template=cluster, settings=SETTINGS) as server:
        yield server
