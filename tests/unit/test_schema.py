"""The SQL files and what is made of them, without a server."""

import hashlib
import re

import pytest

from logsluice import schema
from logsluice.errors import ConfigError, LogsluiceError
from support.processes import run_program


def statements(text):
    """The text without comments: prose may name what SQL must not do."""
    return re.sub(r"--[^\n]*", "", text)


def test_files_are_numbered_without_a_hole_and_carry_their_checksum():
    files = schema.sql_files()
    assert [file.number for file in files] == list(range(1, len(files) + 1))
    assert [file.name for file in files] == [
        "0001_schema",
        "0002_dead_letters",
        "0003_traces",
        "0004_retention",
        "0005_views",
    ]
    for file in files:
        assert file.checksum == hashlib.sha256(file.text.encode()).hexdigest()


def test_each_file_records_its_own_version():
    for file in schema.sql_files():
        assert f"VALUES ({file.number}, '{file.name}')" in file.text


def test_files_are_ascii_because_a_database_may_have_any_encoding():
    assert all(file.text.isascii() for file in schema.sql_files())


def test_psql_and_python_read_the_same_variables():
    # psql substitutes nothing inside $$ bodies, Python would: then the two would make different functions.
    for file in schema.sql_files():
        outside = "".join(re.split(r"\$body\$.*?\$body\$", statements(file.text), flags=re.DOTALL))
        bodies = re.findall(r"\$body\$(.*?)\$body\$", statements(file.text), flags=re.DOTALL)
        assert not [body for body in bodies if ':"' in body or ":'" in body]
        assert set(re.findall(r"(?<!:):(?=[\"'\w])[\"']?\w+[\"']?", outside)) == {':"schema"'}


def test_the_lines_that_python_leaves_out_stand_once():
    text = schema.sql_files()[0].text
    assert text.count(schema._CREATE_SCHEMA) == 1
    assert text.count("\n" + schema._PARTITIONED) == 1


def test_nothing_takes_access_exclusive_on_logs():
    for file in schema.sql_files():
        assert not re.search(r"PARTITION\s+OF|DETACH|\bDEFAULT\s+PARTITION", statements(file.text).split("HINT")[0])


def test_render_writes_the_quoted_schema():
    text = schema.render('Weird "Schema"')
    assert 'CREATE TABLE "Weird ""Schema""".stream (' in text
    assert ':"schema"' not in text
    assert text.count("\nBEGIN;\n") == 1
    assert text.endswith("COMMIT;\n")


def test_render_leaves_out_what_the_database_has():
    text = schema.render(after=1, grant_to="writer")
    assert 'CREATE TABLE "logsluice".logs' not in text
    assert 'ALTER TABLE "logsluice".dead_letter' in text
    assert text.count('UPDATE "logsluice".version SET checksum') == len(schema.sql_files()) - 1
    assert "GRANT INSERT" in text
    for after in (-1, schema.sql_files()[-1].number, 99):
        with pytest.raises(ConfigError, match=f"got {after}"):
            schema.render(after=after)


def test_render_makes_a_plain_table_when_asked():
    assert "PARTITION BY RANGE (ts)\n" in schema.render(partition="week")
    assert "PARTITION BY RANGE (ts)\n" not in schema.render(partition="none")


def test_render_grants_the_least_that_a_writer_needs():
    text = schema.render(grant_to='wri"ter')
    assert [line for line in text.splitlines() if line.startswith("GRANT")] == [
        'GRANT USAGE ON SCHEMA "logsluice" TO "wri""ter";',
        'GRANT INSERT ON "logsluice"."logs" TO "wri""ter";',
        'GRANT INSERT ON "logsluice"."dead_letter" TO "wri""ter";',
        'GRANT SELECT, INSERT, UPDATE ON "logsluice"."stream" TO "wri""ter";',
        'GRANT SELECT ON "logsluice"."version" TO "wri""ter";',
        'GRANT EXECUTE ON FUNCTION "logsluice".make_partitions(timestamptz, timestamptz, text, text) TO "wri""ter";',
    ]
    assert "GRANT" not in statements(schema.render())


def test_the_names_of_roles_are_quoted_and_must_be_three():
    text = schema.roles('we"ird', "o'neil", "r", "a")
    assert "SET LOCAL logsluice.writer = 'o''neil';" in text
    assert "SET LOCAL logsluice.home = 'we\"ird';" in text
    assert "\n\\" not in text
    for wrong in ({"writer": ""}, {"reader": "x" * 64}, {"admin": "logsluice_reader"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            schema.roles(**wrong)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 64, "é" * 32])
def test_a_schema_name_that_postgresql_would_cut_or_refuse_is_an_error(name):
    with pytest.raises(ConfigError, match="schema"):
        schema.render(name)


def test_an_unknown_width_is_an_error():
    with pytest.raises(ConfigError, match=r"'day'.*'none'"):
        schema.render(partition="daily")


def test_the_copy_in_the_wheel_comes_first(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "site-packages" / "logsluice"
    (package / "sql").mkdir(parents=True)
    (package / "sql" / "0001_wheel.sql").write_text("SELECT 1;", encoding="ascii")
    monkeypatch.setattr(schema, "__file__", str(package / "schema.py"))
    assert [file.name for file in schema.sql_files()] == ["0001_wheel"]


def test_an_install_without_sql_files_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "__file__", str(tmp_path / "a" / "b" / "logsluice" / "schema.py"))
    with pytest.raises(LogsluiceError, match="no SQL files"):
        schema.sql_files()


def test_importing_it_does_not_load_the_driver():
    program = run_program("import sys, logsluice.schema, logsluice.partitions; print('psycopg' in sys.modules)")
    assert program.stdout == "False\n", program.stderr
