"""
docs/howto/troubleshoot.md: each symptom made for real, seen by the page's own commands in the page's own words, and gone
after what the page says to do.

A line that the page shows must be among those that the programs print; numbers, times, names of hosts and places are
those of the page (`Said.plain`).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import support.pgbouncer
from logsluice import PostgresHandler, notices, partitions, schema
from logsluice.cli import doctor as doctor_command
from logsluice.cli import main
from logsluice.devserver import free_port
from logsluice.doctor.database import check_database
from support.faults import slow_rows
from support.howto import BLOCK, PAGES, TITLE, environment
from support.journals import mounted, remount
from support.left import leave
from support.pgbouncer import PgBouncer
from support.processes import until
from support.proxy import Proxy
from support.shop import LIMIT, QUICK, Shop

TEXT = (PAGES / "troubleshoot.md").read_text(encoding="utf-8")
# Not a `Page`: one symptom's "stderr" is not another's.
FILES = {TITLE.search(rest)[1]: text for language, rest, text in BLOCK.findall(TEXT) if language in {"python", "json"}}
JOURNAL = "/var/lib/shop/journal"  # as the page names it
SYMPTOMS = set()  # the headings that a test below is about


class Section:
    """What stands under one heading: its commands, its texts, its SQL, by their titles."""

    def __init__(self, heading):
        text = re.split(rf"^##+ {re.escape(heading)}$", TEXT, flags=re.MULTILINE)[1]
        text = re.split(r"^##+ ", text, flags=re.MULTILINE)[0]
        self.commands, self.shown, self.sql = [], {}, {}
        for language, rest, body in BLOCK.findall(text):
            title = TITLE.search(rest)
            if language == "console":
                self.commands += [line[2:] for line in body.splitlines()]
            elif language in {"text", "sql"}:
                (self.shown if language == "text" else self.sql)[title[1]] = body

    def command(self, start):
        (found,) = [one for one in self.commands if one.startswith(start)]
        return found


def about(heading):
    """Give the test the section of this heading."""
    assert re.search(rf"^##+ {re.escape(heading)}$", TEXT, re.MULTILINE), heading
    SYMPTOMS.add(heading)
    return pytest.mark.parametrize("section", [pytest.param(Section(heading), id=heading)])


def test_each_symptom_has_a_test():
    headings = re.findall(r"^##+ (.+)$", TEXT, re.MULTILINE)
    assert len(headings) > 15
    assert [one for one in headings if Section(one).shown and one not in SYMPTOMS] == []


class Said:
    """Lines of stderr, of this process; and how a text looks with the page's numbers and names."""

    def __init__(self, dsn, folder):
        self.lines = []
        where = conninfo_to_dict(dsn)
        self._names = {
            f"{where['host']}:{where['port']}": "db.example:5432",
            f"writer_{where['dbname']}": "shop_writer",
            str(folder / "journal"): JOURNAL,
            socket.gethostname(): "web-1",
        }

    def plain(self, text):
        for ours, shown in self._names.items():
            text = text.replace(ours, shown)
        text = re.sub(r"127\.0\.0\.1:\d+", "db.example:5432", text)
        text = re.sub(r"\b[0-9a-f]{16}\b|[\d~](?:[\d.,:/-]*\d)?", "#", text)
        return [" ".join(line.split()) for line in text.splitlines()]

    def shows(self, shown, printed):
        """Whether each line of the page is one of those that were printed."""
        lines = self.plain(printed if isinstance(printed, str) else "\n".join(printed))
        lacking = [line for line in self.plain(shown) if line not in lines]
        assert not lacking, "\n".join([*lacking, "--- not in:", *lines])

    def heard(self, shown):
        """Wait until stderr has the page's lines."""
        wanted = set(self.plain(shown))
        until(lambda: wanted <= set(self.plain("\n".join(self.lines))), LIMIT)
        self.shows(shown, self.lines)


@pytest.fixture
def said(dsn, tmp_path, monkeypatch):
    said = Said(dsn, tmp_path)
    monkeypatch.setattr("logsluice.diagnostics.write_line", said.lines.append)
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    return said


@pytest.fixture
def printed(capsys, said):
    """Run a command of the page in this process; its stdout."""

    def run(command, status=0):
        capsys.readouterr()
        assert main(shlex.split(command)[1:]) == status
        return capsys.readouterr().out

    return run


def doctor(folder, dsn, command, change=lambda config: None, **env):
    """Run the page's `doctor` on the page's configuration, changed; its stdout."""
    config = json.loads(FILES["logging.json"])
    change(config)
    (folder / "logging.json").write_text(json.dumps(config), encoding="utf-8")
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=environment(LOGSLUICE_DSN=dsn, **env), capture_output=True, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.replace("next: ", "\nnext: ")


def options(**changes):
    """Return a change of the page's handler."""
    return lambda config: config["handlers"]["postgres"].update(changes)


class Program(Shop):
    """The page's handler in this process, by its name, with the ids that it was given."""

    def __init__(self, read, **given):
        entry = json.loads(FILES["logging.json"])["handlers"]["postgres"]
        assert entry.pop("class") == "logsluice.PostgresHandler"
        dsn = given.pop("dsn", os.environ["LOGSLUICE_DSN"])
        del entry["dsn_env"]
        # In the place of minutes: a lock is waited for for a quarter of io_timeout.
        super().__init__(dsn, read=read, **{"io_timeout": 2.0, "slow_batch": 0.1, **entry, **given})
        self.handler.set_name("postgres")

    def health(self):
        """What the page's function says of it."""
        names = {}
        exec(FILES["health.py"], names)
        root = logging.getLogger()
        root.addHandler(self.handler)
        try:
            return "\n".join(line for line in names["health"]() if not line.startswith("LogCapture"))
        finally:
            root.removeHandler(self.handler)

    def mended(self):
        """All that waited is stored, once."""
        assert until(lambda: not self.stats.waiting, LIMIT), self.stats
        self.check()


# --- nothing arrives ------------------------------------------------------------------------------------------------

DOCTOR = Section("Nothing arrives").command("logsluice doctor")


@about("The server is away")
def test_the_server_is_away(section, dsn, said, tmp_path):
    out = doctor(tmp_path, make_conninfo(dsn, port=free_port()), DOCTOR)
    said.shows(section.shown["doctor"], out)
    with Proxy(dsn) as proxy:
        proxy.refuse()
        with Program(dsn, dsn=proxy.dsn) as program:
            program.log(3)
            waits, over = section.shown["stderr"].splitlines()
            said.heard(waits)
            proxy.heal()
            program.mended()
            said.heard(over)


@about("The table is missing")
def test_the_table_is_missing(section, empty_dsn, said, tmp_path, printed, monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DSN", empty_dsn)
    said.shows(section.shown["doctor"], doctor(tmp_path, empty_dsn, DOCTOR, options(create=False)))
    with Program(empty_dsn, create=False) as program:
        program.log(3)
        said.heard(section.shown["stderr"])
        printed(section.command("logsluice migrate"))
        program.mended()


@contextmanager
def writer_without_insert(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = f"writer_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'not seen'")
        try:
            for grant in schema.grants("logsluice", name):
                if '"logs"' not in grant:
                    conn.execute(grant)
            yield conn, make_conninfo(dsn, user=name, password="not seen")
        finally:
            conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@about("The role lacks a right")
def test_the_role_lacks_a_right(section, dsn, said, tmp_path):
    with writer_without_insert(dsn) as (conn, writer):
        out = doctor(tmp_path, writer, DOCTOR, options(create=False))
        said.shows(section.shown["doctor"], out)
        with Program(dsn, dsn=writer, create=False) as program:
            program.log(3)
            said.heard(section.shown["stderr"])
            conn.execute(re.search(r"next: (GRANT .*)", out)[1])
            program.mended()


@about("A pooler is in the way")
def test_a_pooler_is_in_the_way(section, dsn, said, tmp_path, monkeypatch):
    where = []
    with PgBouncer(dsn) as bouncer, Program(dsn, dsn=lambda: where[-1]) as program:
        out = doctor(tmp_path, make_conninfo(bouncer.dsn, options="-c statement_timeout=5s"), DOCTOR)
        said.shows(section.shown["doctor, options"], out)
        assert ", behind a pooler" in doctor(tmp_path, bouncer.dsn, DOCTOR), "as the page says, without options="
        config = support.pgbouncer.CONFIG.replace("pool_mode = transaction", "pool_mode = statement")
        monkeypatch.setattr(support.pgbouncer, "CONFIG", config)
        with PgBouncer(dsn) as wrong:
            said.shows(section.shown["doctor, statement mode"], doctor(tmp_path, wrong.dsn, DOCTOR))
            where.append(wrong.dsn)
            program.log(3)
            said.heard(section.shown["stderr"])
        where.append(bouncer.dsn)  # in transaction mode
        program.mended()


@about("A level, or another logger")
def test_a_level_or_another_logger(section, dsn, said, tmp_path):
    def root(**changes):
        return lambda config: config["root"].update(changes)

    said.shows(section.shown["doctor, level"], doctor(tmp_path, dsn, DOCTOR, root(level="ERROR")))
    named = section.command("logsluice doctor")

    def apart(config, **changes):
        config["loggers"] = {"shop": {"level": "INFO", "propagate": False, **changes}}

    said.shows(section.shown["doctor, propagate"], doctor(tmp_path, dsn, named, apart))
    assert "reach 'postgres'" in doctor(tmp_path, dsn, named, functools.partial(apart, handlers=["postgres"]))
    out = doctor(tmp_path, dsn, DOCTOR, lambda config: config.pop("disable_existing_loggers"))
    said.shows(section.shown["doctor, disabled"], out)
    assert "warn" not in doctor(tmp_path, dsn, DOCTOR), "with the page's file there is nothing to say"


@about("The handler is on no logger")
def test_the_handler_is_on_no_logger(section, dsn, said, tmp_path):
    out = doctor(tmp_path, dsn, DOCTOR, lambda config: config["root"].update(handlers=[]))
    said.shows(section.shown["doctor"], out)
    said.shows(section.shown["doctor, off"], doctor(tmp_path, dsn, DOCTOR, LOGSLUICE_OFF="1"))


@about("All is well, says doctor")
def test_all_is_well_says_doctor(section, dsn, said, printed, monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DEBUG", "1")
    with Program(dsn) as program:
        assert not [line for line in said.lines if "start:" in line], "no record came"
        program.log(4)
        assert program.flush()
        assert [line for line in said.lines if line.startswith("logsluice[postgres]: start: ")]
        said.shows(section.shown["streams"], printed(section.command("logsluice streams")))


# --- the queue ------------------------------------------------------------------------------------------------------


@about("The queue grows")
def test_the_queue_grows(section, dsn, said, tmp_path, monkeypatch):
    monkeypatch.setattr(notices, "STUCK", 0.5)  # seconds, in the place of a minute
    with Program(dsn) as program:
        program.log(4)
        assert program.flush()
        with psycopg.connect(dsn) as somebody:
            somebody.execute("ALTER TABLE logsluice.logs ADD COLUMN more text")
            program.log(12)
            assert until(lambda: program.failed("55P03"), LIMIT)
            said.heard(section.shown["stderr"])
            assert until(lambda: program.stats.breaker == "open", LIMIT)
            shown = section.shown["health"].splitlines()
            assert until(lambda: said.plain(shown[0])[0] in said.plain(program.health()), LIMIT), program.health()
            said.shows(shown[1], program.health())
            said.shows(section.shown["doctor"], doctor(tmp_path, dsn, DOCTOR))
            # Whose batch waits at this moment: one waits, gives up, and tries again.
            who = section.sql["who blocks"]
            assert until(lambda: program.query(who.replace("%'", "%%'")) != [], LIMIT)
            program.mended()
            with pytest.raises(psycopg.OperationalError):
                somebody.execute("SELECT 1")


@about("Records are dropped")
def test_records_are_dropped(section, dsn, said, printed):
    room = 1 << 20  # bytes
    with Proxy(dsn) as proxy, Program(dsn, dsn=proxy.dsn, capacity_bytes=room, max_frame_bytes=64 << 10) as program:
        program.log()
        assert program.flush()
        proxy.refuse()
        proxy.cut()
        assert until(lambda: bool(program.log(200)) and program.stats.dropped, LIMIT)
        going_on, over = section.shown["stderr"].splitlines()
        said.heard(going_on)
        proxy.heal()
        assert until(lambda: not program.stats.waiting, LIMIT)
        said.heard(over)
        assert program.flush()
        dropped = program.stats.dropped
        query, top = section.commands
        assert until(lambda: program.query("SELECT 1 FROM logsluice.logs WHERE logger = 'logsluice'"), LIMIT)
        line = printed(query)
        said.shows(section.shown["query"], re.sub(r"  \{.*", "", line))
        assert f"{dropped} records were dropped" in line
        program.log()
        assert program.flush()
        missing = sum(row[-1] for row in program.query(Section("Gaps in seq").sql["gaps"]))
        assert missing == dropped, "as the page says of gaps"
        out = printed(top)
        said.shows(section.shown["top"], out)
        assert re.search(rf"^ +0 +[\d,]+ +[\d,]+ +{dropped:,} +0 ", out, re.MULTILINE), out
    with Program(dsn) as program:  # more room
        program.log(2000)
        assert program.flush()
        assert program.stats.dropped == 0


@about("Memory grows")
def test_memory_grows(section, dsn, said):
    room = 1 << 20  # bytes
    with Proxy(dsn) as proxy, Program(dsn, dsn=proxy.dsn, capacity_bytes=room, max_frame_bytes=64 << 10) as program:
        proxy.refuse()
        assert until(lambda: bool(program.log(200)) and program.stats.dropped, LIMIT)
        most = program.stats.waiting_bytes
        program.log(2000)
        assert most <= program.stats.waiting_bytes <= room == program.stats.capacity_bytes
        assert until(lambda: program.stats.breaker == "open", LIMIT)
        assert until(lambda: said.plain(section.shown["health"])[0] in said.plain(program.health()), LIMIT)
        proxy.heal()
        assert until(lambda: not program.stats.waiting, LIMIT)


# --- dead letters, slow batches, gaps ----------------------------------------------------------------------------------


@about("Many dead letters")
def test_many_dead_letters(section, dsn, said, printed):
    with Program(dsn) as program:
        program.log()
        assert program.flush()
        program.do("ALTER TABLE logsluice.logs ADD CONSTRAINT nonempty CHECK (message NOT LIKE '%bad%')")
        for text in ("good", "bad", "good", "bad"):
            program.logger.info(text)
        assert program.flush()
        said.heard(section.shown["stderr"])
        count, listed, replay = section.commands
        said.shows(section.shown["replay"], printed(count))
        said.shows(section.shown["list"], printed(listed))
        for _ in range(60):
            program.logger.info("bad")
        said.heard(section.shown["stderr, all"])
        program.do("ALTER TABLE logsluice.logs DROP CONSTRAINT nonempty")
        assert until(lambda: not program.stats.waiting, LIMIT)
        dead = program.stats.dead
        assert printed(replay) == f"stored {dead}\n"
        assert program.query("SELECT count(*) FROM logsluice.logs WHERE message = 'bad'") == [(62,)]


@about("Slow batches")
def test_slow_batches(section, dsn, said, printed):
    with Program(dsn, io_timeout=LIMIT) as program:
        program.log()
        assert program.flush()
        with slow_rows(program, 150):
            program.log(4)
            said.heard(section.shown["stderr"])
            out = printed(section.command("logsluice doctor"))
            said.shows(section.shown["doctor"], out)
            assert int(re.search(r"read back in (\d+) ms", out)[1]) >= 150
            ((name, definition),) = program.query(section.sql["triggers"])
            assert "slowly" in definition
        program.do(f"DROP TRIGGER IF EXISTS {name} ON logsluice.logs")
        program.mended()
        assert program.query(section.sql["triggers"]) == []


KILLED = """
import json, logging, logging.config, os, sys
import psycopg
config = json.load(open("logging.json"))
config["handlers"]["postgres"].update(linger=0.05, batch_size=2)
logging.config.dictConfig(config)
log = logging.getLogger("shop")
log.info("one")
logging.getLogger().handlers[0].flush()
for n in range(9):
    log.info("order %s", n)
logging.getLogger().handlers[0].flush(60)
"""


@about("Gaps in seq")
def test_gaps_in_seq(section, dsn, said, printed, tmp_path):
    gaps = section.sql["gaps"]
    with Program(dsn) as program:
        program.log(3)
        assert program.flush()
        assert program.query(gaps) == []
        program.do("ALTER TABLE logsluice.logs ADD CONSTRAINT nonempty CHECK (message <> 'bad')")
        program.logger.info("bad")
        program.log(3)
        assert program.flush()
        ((stream, first, last, missing),) = program.query(gaps)
        assert (first, last, missing) == (4, 4, 1), "numbers begin with 1"
        assert program.query("SELECT stream, seq FROM logsluice.dead_letter") == [(stream, 4)]
        program.do("ALTER TABLE logsluice.logs DROP CONSTRAINT nonempty")
        printed("logsluice dead replay --yes")
        assert program.query(gaps) == []
        with slow_rows(program, 300):
            (tmp_path / "logging.json").write_text(FILES["logging.json"], encoding="utf-8")
            process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment(LOGSLUICE_DSN=dsn))
            killed = "SELECT 1 FROM logsluice.stream WHERE pid = %s AND offered - stored > 1 AND stored > 1"
            seen = until(lambda: program.query(killed, process.pid), LIMIT)
            process.send_signal(signal.SIGKILL)
            process.wait(LIMIT)
            assert seen
        assert program.query(gaps) == [], "what was lost were the last numbers"
        program.do(f"UPDATE logsluice.stream SET updated = now() - interval '6 minutes' WHERE pid = {process.pid}")
    said.shows(section.shown["doctor"], printed(section.command("logsluice doctor")).replace("next: ", "\nnext: "))


# --- disks ------------------------------------------------------------------------------------------------------------


@about("The disk fills: the database's")
def test_the_databases_disk_fills(section, dsn, said, printed):
    with psycopg.connect(dsn, autocommit=True) as conn:
        now = datetime.now(timezone.utc)
        (old, *_) = partitions.ensure_at(conn, "logsluice", "day", now - timedelta(days=40))
        with Program(dsn) as program:
            program.log(3)
            assert program.flush()
        listed, *stats, dry, prune = section.commands
        said.shows(section.shown["partitions"], printed(listed))
        tables, loggers, volume = (printed(one) for one in stats)
        assert " logs\n" in tables
        assert program.logger.name in loggers
        assert "shop" in volume
        assert old in printed(dry)
        said.shows(section.shown["prune"], printed(prune))
        assert old not in printed(listed)


@about("The disk fills: the journal's")
def test_the_journals_disk_fills(section, dsn, said, printed, tmp_path):
    journal = tmp_path / "journal"
    leave(dsn, tmp_path, journal, count=20)
    show, _, load = (one.replace(JOURNAL, str(journal)) for one in section.commands)
    said.shows(section.shown["journal"], printed(show))
    out = doctor(tmp_path, dsn, section.command("logsluice doctor"), options(journal=str(journal)))
    said.shows(section.shown["doctor"], out)
    assert "20 records stored" in printed(load.replace("--load", "--load --even-elsewhere"))
    assert "its process is gone" not in printed(show)
    small = {"journal": str(journal), "journal_bytes": 2 << 20, "max_frame_bytes": 64 << 10}
    with Proxy(dsn) as proxy, Program(dsn, dsn=proxy.dsn, **small) as program:
        proxy.refuse()
        assert until(lambda: bool(program.log(200, payload="x" * 1000)) and program.stats.dropped, LIMIT)
        assert "a living process has it" in printed(show)
        said.heard(section.shown["stderr"])
        proxy.heal()
        assert until(lambda: not program.stats.waiting, LIMIT)


@about("The disk fills: the journal's")
def test_the_journals_disk_is_full(section, dsn, said, tmp_path):
    journal = tmp_path / "journal"
    journal.mkdir()
    with (
        mounted(journal, "-t", "tmpfs", "-o", "size=128k,mode=700", "tmpfs"),
        Program(dsn, journal=str(journal)) as program,
    ):
        program.log(3)
        said.heard(section.shown["stderr, no room"])
        remount(journal, "size=16m")
        assert until(lambda: program.stats.journal["trouble"] is None, LIMIT)
        program.mended()


# --- late, twice, at the end --------------------------------------------------------------------------------------------


@about("Rows come late")
def test_rows_come_late(section, dsn, said, printed, tmp_path, monkeypatch):
    journal = tmp_path / "journal"
    leave(dsn, tmp_path, journal, count=20)
    with Program(dsn, journal=str(journal)) as program:
        program.log()
        said.heard(section.shown["stderr"])
        program.flush()
    monkeypatch.setattr(
        doctor_command, "check_database", functools.partial(check_database, now=lambda: time.time() + 600)
    )
    out = printed(section.command("logsluice doctor"))
    said.shows(section.shown["doctor"], out.replace("next: ", "\nnext: "))
    with Program(dsn, linger=LIMIT) as program:
        program.log()
        assert program.stored() == [0], "of the one before"
        assert program.handler.flush()
        assert program.stored() == [0, 0]


@about("Rows are there twice")
def test_rows_are_there_twice(section, dsn, said, tmp_path):
    def both(config):
        config["loggers"] = {"shop": {"level": "INFO", "handlers": ["postgres"]}}

    said.shows(section.shown["doctor"], doctor(tmp_path, dsn, DOCTOR, both))
    with Program(dsn) as program:
        child = program.logger.getChild("child") if program.logger.manager else logging.Logger("child")
        child.parent = program.logger
        child.addHandler(program.handler)
        child.warning("twice")
        child.propagate = False
        child.warning("once")
        assert program.flush()
        assert program.query("SELECT message, count(*), count(DISTINCT seq) FROM logsluice.logs GROUP BY 1 ORDER BY 1") == [
            ("once", 1, 1), ("twice", 2, 2)
        ]  # fmt: skip


@about("The program hangs at exit")
def test_the_program_hangs_at_exit(section, dsn, said, tmp_path, printed):
    with Proxy(dsn) as proxy:
        proxy.refuse()
        program = Program(dsn, dsn=proxy.dsn, shutdown_timeout=0.2)
        program.log(12)
        program.handler.close()
        said.heard(section.shown["stderr"])
        journal = str(tmp_path / "journal")
        kept = Program(dsn, dsn=proxy.dsn, shutdown_timeout=0.2, journal=journal)
        kept.log(12)
        kept.handler.close()
        said.heard(section.shown["stderr, journal"])
        assert "12 records" in printed(f"logsluice journal {journal}")
    with Program(dsn, journal=journal) as heir:
        heir.log()
        assert heir.flush()
        printed(f"logsluice journal {journal} --load --even-elsewhere")
        assert len(heir.stored()) == 13


@about("Nothing more after a certain moment")
def test_the_handler_was_closed(section, dsn, said):
    with Program(dsn) as program:
        program.log(3)
        program.handler.close()
        program.log(2)
        said.heard(section.shown["stderr"])
        assert program.stats.dropped_by == {("closed", logging.INFO): 2}
        assert len([line for line in said.lines if "was closed" in line]) == 1, "once"
        assert program.stored() == [0, 1, 2]
    with Program(dsn) as again:
        again.log()
        assert again.flush()
        assert sorted(again.stored()) == [0, 0, 1, 2]


@about("A forked child's records are missing")
def test_a_forked_childs_records_are_missing(section, dsn, said, printed, tmp_path):
    streams, lost, mended = section.commands
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    def run(command):
        subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment(LOGSLUICE_DSN=dsn), check=True, timeout=LIMIT,
            capture_output=True,
        )  # fmt: skip
        with psycopg.connect(dsn) as conn:
            return sorted(row[0] for row in conn.execute("SELECT message FROM logsluice.logs").fetchall())

    assert run(lost) == ["parent"]
    assert printed(streams).count("first seen") == 1
    assert run(mended) == ["child", "parent", "parent"]
    assert printed(streams).count("first seen") == 3


def test_the_handler_of_the_page_is_taken(said):
    entry = json.loads(FILES["logging.json"])["handlers"]["postgres"]
    PostgresHandler(**{key: value for key, value in entry.items() if key != "class"})
    assert set(entry) & set(QUICK) == set(), "the tests' quickness hides nothing that the page says"
