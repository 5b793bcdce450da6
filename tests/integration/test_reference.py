"""docs/reference/schema.md beside a database that the project has made."""

from __future__ import annotations

import psycopg

from support import reference
from support.tables import DOCS


def test_the_page_of_the_tables_is_up_to_date(empty_dsn):
    """`PYTHONPATH=tests python -m support.reference` writes it."""
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        reference.fill(conn)
        made = reference.tables(conn)
    assert (DOCS / "reference" / "schema.md").read_text(encoding="utf-8") == reference.page("schema.md", made)
    tables = made.partition("\n## View")[0]  # a view says in its COMMENT whose comments its columns have
    assert "|  |" not in tables, "a column without a COMMENT"
    assert "\n\n\n" not in made, "a table, view or function without one"
