"""`logsluice doctor` on a dictConfig: what it reads is what logging does, and each mistake has its next step."""

import json
import logging
from types import SimpleNamespace

import pytest

from logsluice import doctor
from logsluice.cli import doctor as command
from logsluice.config import PostgresSettings, settings_from
from logsluice.doctor import FAIL, OK, WARN, connect
from logsluice.doctor.dictconfig import handlers_of, resolved
from logsluice.doctor.journal import check_journal
from logsluice.doctor.ways import ways
from support.processes import run_program

CANARY = "canary7secret"


def config(loggers=None, *, root=(), level="INFO", **more):
    handlers = {"db": {"class": "logsluice.PostgresHandler"}, "console": {"class": "logging.StreamHandler"}}
    made = {"version": 1, "disable_existing_loggers": False, "handlers": handlers, "loggers": loggers or {}}
    return {**made, "root": {"level": level, "handlers": list(root)}, **more}


def check(given, **more):
    return doctor.check_loggers(given, "log.json", ["db"], **more)


def only(findings, *words):
    found = [one for one in findings if all(word in one.what for word in words)]
    assert len(found) == 1, findings
    return found[0]


def way(given, name, handler="db"):
    return ways(given, [name], [handler])[0]


# which way records go


def test_a_record_climbs_to_the_handler_on_root():
    found = way(config({"shop": {"level": "DEBUG"}}, root=["db"]), "shop.cart.items")
    assert (found.level, found.level_of, found.hits, found.stopped) == (10, "shop", (("", "db"),), None)
    assert found.stored == {20: 1, 30: 1, 40: 1}
    assert check(config(root=["db"]))[0].what == "root (level INFO): INFO, WARNING and ERROR reach 'db'"


@pytest.mark.parametrize("spelling", ["", "root"])
def test_root_may_stand_among_the_loggers(spelling):
    given = config()
    del given["root"]
    given["loggers"] = {spelling: {"level": "ERROR", "handlers": ["db"], "propagate": False}}
    assert way(given, "shop").stored == {20: 0, 30: 0, 40: 1}


def test_root_without_a_level_lets_no_info_through():
    given = config(root=["db"])
    del given["root"]["level"]
    found = only(check(given), "INFO not: the level of root is WARNING")
    assert (found.status, found.next) == (WARN, 'set "level": "INFO" on root in log.json')


def test_the_level_of_a_parent_and_of_the_handler_hold_records_back():
    given = config({"shop": {"level": "ERROR"}}, root=["db"])
    assert only(check(given), "shop", "INFO and WARNING not").next == 'set "level": "INFO" on shop in log.json'
    given = config(root=["db"])
    given["handlers"]["db"]["level"] = 30
    found = only(check(given), "INFO not: the level of handler 'db' is WARNING")
    assert found.next == 'set "level": "INFO" on handler \'db\' in log.json, or take it out'


def test_nothing_at_all_gets_through_is_a_failure():
    given = config(root=["db"], level="CRITICAL")
    assert only(check(given), "nothing reaches").status == FAIL


def test_propagate_false_without_the_handler():
    given = config({"shop": {"propagate": False, "handlers": ["console"]}}, root=["db"])
    found = only(check(given), "shop (level INFO): nothing reaches 'db': propagate is false on shop")
    assert found.status == FAIL
    assert found.next == "add 'db' to the handlers of shop, or drop its propagate: false, in log.json"
    # Asked about another logger, this one is not judged; a child of it is stopped there, too.
    assert {one.status for one in check(given, asked=["root"])} == {OK}
    assert "propagate is false on shop" in only(check(given, asked=["shop.cart"]), "shop.cart").what


def test_a_logger_beside_the_handlers_way_is_a_warning_and_a_failure_when_asked_for():
    given = config({"shop": {"handlers": ["db"]}})
    assert only(check(given), "root (level INFO): nothing reaches 'db': it is on no logger on their way").status == WARN
    found = only(check(given, asked=["other"]), "other")
    assert (found.status, found.next) == (FAIL, "add 'db' to the handlers of root or of other in log.json")


def test_a_handler_on_no_logger():
    (found,) = check(config())
    assert (found.status, found.what) == (FAIL, "'db' is defined but is on no logger: it gets nothing")
    assert found.next == "add 'db' to the handlers of root in log.json"


def test_a_handler_on_parent_and_child_stores_twice():
    given = config({"shop": {"handlers": ["db", "db"]}, "shop.cart": {}, "quiet": {"propagate": False}}, root=["db"])
    assert way(given, "shop.cart").stored == {20: 2, 30: 2, 40: 2}
    found = only(check(given), "shop:", "stored 2 times in 'db': it is on shop and root")
    assert (found.status, found.next) == (WARN, "take it off shop, or set propagate: false there, in log.json")
    given["loggers"]["shop"]["propagate"] = False
    assert not [one for one in check(given) if "times" in one.what]


def test_what_another_handler_of_ours_stores_is_not_missed():
    given = config(root=["db", "errors"])
    given["handlers"]["errors"] = {"class": "logsluice.PostgresHandler", "level": "ERROR"}
    findings = doctor.check_loggers(given, "log.json", ["db", "errors"])
    assert [one.status for one in findings] == [OK, OK]
    assert "ERROR reaches 'errors', INFO and WARNING not" in findings[1].what


def test_a_handler_behind_another_one():
    given = config(root=["memory"])
    given["handlers"]["memory"] = {"class": "logging.handlers.MemoryHandler", "target": "db", "level": "ERROR"}
    assert way(given, "shop").stored == {20: 0, 30: 0, 40: 1}
    assert only(check(given), "through memory").next == "put 'db' directly on the loggers: it is a queue already"


# loggers that exist already


@pytest.mark.parametrize("given", [{}, {"disable_existing_loggers": True}])
def test_disable_existing_loggers_names_whom_it_silences(given):
    whole = {**config({"shop": {}}, root=["db"]), **given}
    if not given:
        del whole["disable_existing_loggers"]
    made = ["shop", "shop.cart", "lib", "lib.net"]
    found = only(check(whole, made=made), "disable_existing_loggers is true")
    assert ("the default" in found.what) == (not given)
    assert "lib, lib.net, made while log.json was imported, stay silent" in found.what
    assert (found.status, found.next) == (WARN, 'add "disable_existing_loggers": false to log.json')
    found = only(check(whole, made=made, asked=["lib.net"]), "lib.net: not stored: a module makes this logger first")
    step = 'add "lib.net": {"handlers": ["db"], "level": "INFO", "propagate": false} to "loggers" of log.json'
    assert (found.status, found.next) == (FAIL, step)
    assert "loggers that exist before it is applied stay silent" in check(whole)[0].what


def test_incremental_makes_no_handler():
    (found,) = check(config(root=["db"], incremental=True))
    assert (found.status, found.next) == (FAIL, 'take "incremental" out of log.json')


def test_frameworks_that_the_configuration_does_not_name():
    packages = ["uvicorn", "django", "celery"]
    findings = check(config(root=["db"]), packages=packages)
    found = only(findings, "uvicorn.access: not stored")
    step = 'add "uvicorn.access": {"handlers": ["db"], "level": "INFO", "propagate": false} to "loggers" of log.json'
    assert (found.status, found.next) == (WARN, step)
    assert only(findings, "django.request (level INFO)").status == OK
    assert "celery.signals.setup_logging" in only(findings, "Celery's worker takes 'db' off root").next
    silenced = check({**config(root=["db"]), "disable_existing_loggers": True}, packages=packages)
    found = only(silenced, "django.request: not stored: django makes this logger first, and disable_existing_loggers")
    assert (found.status, "celery: not stored" in repr(silenced)) == (WARN, True)
    found = only(check(config(root=["db"]), asked=["gunicorn.error"]), "gunicorn.error")
    assert (found.status, "logconfig_dict" in found.what) == (FAIL, True)
    # Named, or below a logger that is: what logging does with them is read like anything else.
    named = config({"uvicorn": {"level": "INFO"}, "uvicorn.access": {"level": "INFO"}}, root=["db"])
    assert {one.status for one in check(named, packages=["uvicorn"])} == {OK}
    assert not [one for one in check(config(root=["db"])) if "uvicorn" in one.what]


# the handlers


def handlers(given):
    return handlers_of(resolved(given), "log.json")


def test_a_right_handler_is_made_and_its_filters_are_told():
    given = config(root=["db"])
    given["handlers"]["db"].update(dsn="host=nowhere", level="INFO", filters=["mine"], formatter="plain")
    (found,), makers = handlers(given)
    assert (found.status, "filters (mine) may hold records back" in found.what) == (OK, True)
    assert makers["db"]()._settings.dsn == "host=nowhere"


@pytest.mark.parametrize("factory", ["class", "()"])
def test_a_wrong_option_gives_the_config_errors_text(factory):
    given = config(root=["db"])
    given["handlers"]["db"] = {factory: "logsluice.PostgresHandler", "lingr": 1}
    (found,), makers = handlers(given)
    assert (found.status, found.what) == (FAIL, "'db': unknown option 'lingr'; did you mean 'linger'?")
    assert (found.next, makers) == ("correct handler 'db' in log.json", {})


def test_values_that_ext_names_are_used():
    given = config(root=["db"])
    given["handlers"]["db"]["dsn"] = "ext://os.getcwd"
    _, makers = handlers(given)
    assert callable(makers["db"]()._settings.dsn)


@pytest.mark.parametrize(
    "name", ["logsluice.PostgreSQLHandler", "logsluice.handler.PostgresHandler", "PostgresHandler"]
)
def test_a_wrong_class_name(name):
    given = config(root=["db"])
    given["handlers"]["db"]["class"] = name
    (found,), _ = handlers(given)
    assert (found.status, found.next) == (FAIL, 'write "class": "logsluice.PostgresHandler" in log.json')


def test_a_class_of_somebody_else_that_is_not_there():
    given = config(root=["db"])
    given["handlers"]["console"]["class"] = "nowhere.Handler"
    findings, makers = handlers(given)
    found = only(findings, "'console'", "No module named 'nowhere'")
    assert found.status == FAIL
    assert found.next.startswith("run doctor with your program's Python and in its folder")
    assert list(makers) == ["db"]


def test_no_handler_of_ours():
    given = config()
    del given["handlers"]["db"]
    (found,), _ = handlers(given)
    assert (found.status, found.what) == (FAIL, "log.json holds no logsluice handler")
    assert '"class": "logsluice.PostgresHandler"' in found.next


def test_a_variable_that_is_not_set_here(monkeypatch):
    monkeypatch.delenv("LOGS_DSN", raising=False)
    given = config(root=["db"])
    given["handlers"]["db"]["dsn_env"] = "LOGS_DSN"
    (found,), _ = handlers(given)
    assert found.next == "export LOGS_DSN=... in this shell as for your program, and run doctor again"


@pytest.mark.parametrize(
    "options",
    [
        {"dsn_env": f"postgresql://u:{CANARY}@h/db"},  # a dsn where a name belongs
        {"dsn": f"host=h password={CANARY} {CANARY}"},
        {"dsn": f"postgresql://u:{CANARY}@h:port:{CANARY}/db%"},
    ],
)
def test_no_part_of_a_secret_is_said_of_wrong_options(options):
    given = config(root=["db"])
    given["handlers"]["db"].update(options)
    findings, _ = handlers(given)
    assert findings[0].status == FAIL
    assert CANARY not in repr(findings)


@pytest.mark.parametrize("part", ["handlers", "loggers", "root"])
def test_a_list_where_a_mapping_belongs(part):
    with pytest.raises(ValueError, match=f"'{part}' must be a mapping"):
        resolved({**config(), part: ["db"]})


# what is read is what logging does

COMPARE = """
import logging, random, json
import logsluice.doctor.ways
import sys
w = sys.modules["logsluice.doctor.ways"]
from logsluice.doctor import dictconfig as d
rng = random.Random(7)
levels = [None, 0, "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", 25]
for n in range(400):
    def node(propagate=True):
        given = {"handlers": [h for h in ("db", "mem", "other") if rng.random() < 0.3]}
        if rng.random() < 0.5: given["level"] = rng.choice(levels[1:])
        if propagate and rng.random() < 0.5: given["propagate"] = rng.random() < 0.5
        return given
    names = [f"p{n}{rest}" for rest in ("", ".a", ".a.b", ".c", ".c.d.e") if rng.random() < 0.6]
    config = {"version": 1, "handlers": {
        "db": {"class": "logsluice.PostgresHandler", "level": rng.choice(levels[1:])},
        "mem": {"class": "logging.handlers.MemoryHandler", "target": "db", "level": rng.choice(levels[1:])},
        "other": {"class": "logging.StreamHandler"}}, "loggers": {name: node() for name in names}}
    if rng.random() < 0.8: config["root"] = node(False)
    logging.root.setLevel(logging.WARNING); logging.root.handlers.clear()
    finding = d.accepted(config, "x", ["db", "other"])
    assert finding.status == "ok", (finding, config)
    for way in w.ways(config, [f"p{n}.a.b.z", f"p{n}.c.d", "elsewhere"], ["db", "other"]):
        assert d._observed(way, w.carriers(config, way.handler)) == way.stored, (way, config)
print("all agree")
"""


def test_four_hundred_random_configurations_are_read_as_logging_applies_them():
    program = run_program(COMPARE)
    assert (program.stdout, program.stderr) == ("all agree\n", "")


REFUSED = """
import json, sys
from logsluice.doctor import dictconfig as d
config = json.loads(sys.argv[1])
finding = d.accepted(config, "log.json", ["db"])
print(finding.status, finding.what, finding.next, sep="\\n")
"""


@pytest.mark.parametrize(
    ("change", "what", "step"),
    [
        ({"version": None}, "Unsupported version", 'add "version": 1 at the top of log.json'),
        ({"root": {"level": "info"}}, "Unknown level: 'info'", "in capitals"),
        ({"root": {"handlers": "db"}}, "Unable to add handler 'd'", 'such as ["db"]'),
        ({"root": {"handlers": ["dbb"]}}, "Unable to add handler 'dbb'", 'that stand under "handlers"'),
        ({"root": {"filters": ["none"]}}, "Unable to add filter 'none'", "correct that in log.json"),
    ],
)
def test_what_dict_config_refuses_is_told_in_its_words(change, what, step):
    program = run_program(REFUSED, args=[json.dumps({**config(), **change})])
    status, said, then = program.stdout.splitlines()
    assert status == FAIL
    assert what in said
    assert step in then


# causes of a failed connection; the real ones are in tests/integration/test_cli_doctor.py

AT = 'connection failed: connection to server at "10.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "what", "step"),
    [
        (AT + "timeout expired", "10.0.0.1:5432 does not answer", "firewall"),
        ("failed to resolve host 'db.nowhere': [Errno -2]", "host db.nowhere is not known", "getent hosts db.nowhere"),
        (AT + 'FATAL:  role "jo" does not exist', "there is no role jo", 'CREATE ROLE "jo" LOGIN'),
        (AT + 'FATAL:  role "jo" is not permitted to log in', "may not log in", 'ALTER ROLE "jo" LOGIN;'),
        (AT + 'FATAL:  no pg_hba.conf entry for host "10.0.0.9", user "jo", database "x", no encryption',
         'no pg_hba.conf entry for host "10.0.0.9"', "sslmode=require"),
        (AT + 'FATAL:  Peer authentication failed for user "jo"', "for role jo: Peer auth", "pg_hba.conf maps"),
        (AT + "server does not support SSL, but SSL was required", "offers no TLS", "sslmode"),
        (AT + "SSL error: certificate verify failed", "TLS with 10.0.0.1:5432 fails", "sslrootcert"),
        (AT + 'root certificate file "/r.crt" does not exist', "TLS with 10.0.0.1:5432 fails", "sslrootcert"),
        (AT + "FATAL:  sorry, too many clients already", "no connection to spare", "max_connections"),
        (AT + "FATAL:  the database system is starting up", "the database system is starting up", "wait"),
        (AT + "FATAL:  etwas Neues", "cannot connect: connection failed", "ask who runs that server"),
    ],
)  # fmt: skip
def test_causes_of_a_failed_connection(text, what, step):
    found = connect.cause(text, {"host": "10.0.0.1", "password": CANARY})
    assert found.status == FAIL
    assert what in found.what
    assert step in found.next


def test_a_password_in_the_text_is_taken_out_unless_it_is_the_roles_name():
    assert CANARY not in repr(connect.cause(f"odd: {CANARY}", {"password": CANARY}))
    assert (
        "role postgres"
        in connect.cause(
            AT + 'FATAL:  password authentication failed for user "postgres"',
            {"user": "postgres", "password": "postgres"},
        ).what
    )


@pytest.mark.parametrize("dsn", ["postgresql://u:can@ary7@127.0.0.1:1/db", "postgresql://u:canary7/x@127.0.0.1:1/db"])
def test_a_password_that_ends_early_becomes_no_host_name_in_the_output(dsn):
    found = connect.connect(settings_from({"dsn": dsn}, PostgresSettings))
    assert "percent-encode" in found.next.lower()
    assert "ary7" not in repr(found)


def test_a_switched_off_logsluice_is_the_first_thing_said(monkeypatch, capsys):
    """And the rest is looked at all the same: a doctor who stops there would be asked twice."""
    monkeypatch.setenv("LOGSLUICE_OFF", "1")
    args = SimpleNamespace(config=None, logger=[], dsn="host=127.0.0.1 port=1 connect_timeout=2", schema="logsluice")
    assert command.run(args) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "LOGSLUICE_OFF is set" in lines[0]
    assert "unset" in lines[1]
    assert any("connect" in line for line in lines[2:])


# reading the file, printing


def load(name):
    with pytest.raises(command.CannotReadError) as error:
        command.load(str(name))
    what, step = error.value.args
    assert CANARY not in what + step
    return what, step


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    broken = tmp_path / "log.json"
    broken.write_text(f'{{"version": 1,\n "dsn": "{CANARY}" "x"}}', encoding="utf-8")
    assert "line 2, column" in load(broken)[0]
    yaml = tmp_path / "log.yaml"
    yaml.write_text(f"version: 1\n  password: {CANARY}: [\n", encoding="utf-8")
    assert "is no YAML: line 2, column" in load(yaml)[0]
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    assert "holds a list, not a mapping" in load(tmp_path / "list.json")[0]
    (tmp_path / "app.json").write_text('{"debug": true, "LOGGING": {"version": 1}}', encoding="utf-8")
    assert "its 'LOGGING' may be one" in load(tmp_path / "app.json")[0]
    assert load(tmp_path / "none.json")[0].startswith("there is no file ")
    assert "give one of these" in load(tmp_path / "log.ini")[1]
    assert "log:LOGGING" in load(tmp_path / "log.py")[1]
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in load(tmp_path / "bytes.json")[0]
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert load(yaml)[1] == "pip install PyYAML"


def test_modules_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "doctor_good.py").write_text("class Dev:\n    LOGS = {'inner': {'version': 1}}\nOTHER = 1\n", "utf-8")
    (tmp_path / "doctor_bad.py").write_text(f"raise ValueError('{CANARY}')\n", "utf-8")
    assert command.load("doctor_good:Dev.LOGS.inner") == ({"version": 1}, "doctor_good:Dev.LOGS.inner")
    assert load("doctor_good:LOGGING") == ("doctor_good has no LOGGING", "name one that it has: OTHER")
    assert load("doctor_good:OTHER")[0].startswith("doctor_good:OTHER holds a int")
    assert load("doctor_bad:X")[0] == "cannot import doctor_bad: ValueError"
    assert "No module named 'doctor_none'" in load("doctor_none:X")[0]


def test_the_output_is_tame_and_plain_where_no_colour_is_wanted(capsys, monkeypatch):
    finding = doctor.Finding(FAIL, "dead", "line\none \x1b[2Jtwo", "do this")
    command._print(finding, colour=False)
    assert capsys.readouterr().out == f"FAIL  dead       line one \\x1b[2Jtwo\n{'':17}next: do this\n"
    command._print(finding, colour=True)
    assert capsys.readouterr().out.startswith("\x1b[1;31mFAIL\x1b[0m  dead ")
    for terminal, environment, wanted in [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False)]:
        shown = []
        with monkeypatch.context() as patch:
            patch.delenv("NO_COLOR", raising=False)
            patch.setenv("TERM", "xterm")
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(command.sys, "stdout", SimpleNamespace(isatty=lambda value=terminal: value, write=len))
            patch.setattr(command, "_print", lambda _finding, *, colour, into=shown: into.append(colour))
            patch.setattr(command, "_by_dsn", lambda _args: [finding])
            assert command.run(SimpleNamespace(config=None, logger=[], dsn=None, schema="logsluice")) == 1
        assert shown == [wanted]


def test_reading_leaves_logging_as_it_was():
    before = (logging.root.level, list(logging.root.handlers))
    check(config({"shop": {"level": "ERROR"}}, root=["db"]))
    handlers(config(root=["db"]))
    assert (logging.root.level, list(logging.root.handlers)) == before


# a journal's place


@pytest.mark.parametrize(
    ("kind", "unsafe", "status", "words"),
    [
        ("ext4", False, OK, "a killed process loses nothing whose call had returned"),
        ("xfs", False, OK, "is on xfs"),
        ("tmpfs", False, WARN, "not the machine"),
        ("overlay", False, WARN, "goes with the container"),
        ("btrfs", False, FAIL, "SIGBUS"),
        ("btrfs", True, WARN, "journal_unsafe_fs=True takes that"),
        ("nfs4", True, WARN, "is on nfs4"),
        ("unknown", False, FAIL, "is on unknown"),
    ],
)
def test_what_a_journal_lies_on(tmp_path, monkeypatch, kind, unsafe, status, words):
    monkeypatch.setattr("logsluice.folder.file_system", lambda _path: kind)
    settings = settings_from({"journal": tmp_path / "j", "journal_unsafe_fs": unsafe}, PostgresSettings)
    place, *more = check_journal(settings)
    assert (place.status, words in place.what) == (status, True), place
    assert bool(place.next) == (status != OK)
    assert [one.about for one in more] == ["journal"] * 3
    assert list((tmp_path / "j").iterdir()) == [tmp_path / "j" / "lock"] or not list((tmp_path / "j").iterdir())


def test_no_journal_no_finding():
    assert list(check_journal(settings_from({}, PostgresSettings))) == []


def test_a_journal_that_others_may_write_into(tmp_path):
    tmp_path.chmod(0o770)
    (found,) = check_journal(settings_from({"journal": tmp_path}, PostgresSettings))
    assert found.status == FAIL
    assert "others may write into it (mode 770): chmod go-w it" in found.what
    assert found.next == "name a folder that this user alone may write into, on a local disk with room"
