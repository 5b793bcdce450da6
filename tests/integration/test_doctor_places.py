"""`logsluice doctor` on what is no database: a file, an endpoint, a sink of one's own; each fault is a real one."""

from __future__ import annotations

import fcntl
import grp  # noqa: F401 - before a test is nobody, who may not read where Python is
import json
import os
import pwd
import ssl
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from logsluice.cli import main
from logsluice.config import FileSettings, SinkSettings, settings_from
from logsluice.devserver import free_port
from logsluice.doctor import FAIL, OK, WARN, file
from logsluice.doctor.endpoint import check_endpoint
from logsluice.doctor.file import check_file
from logsluice.doctor.sink import check_sink
from logsluice.handlers import HttpHandler
from logsluice.sinks import Sink, SinkError
from support.endpoint import Answer, Stub
from support.files import logging_to
from support.journals import mounted, remount
from support.processes import run_program
from support.tls import certificate

CANARY = "canary7secret"
LIMIT = 30  # seconds: a net


def only(findings, *words):
    """The one finding that says this."""
    found = [one for one in findings if all(word in f"{one.what} {one.next}" for word in words)]
    assert len(found) == 1, findings
    assert found[0].status == OK or found[0].next
    return found[0]


def configuration(**handlers):
    made = {"version": 1, "disable_existing_loggers": False, "handlers": handlers}
    return {**made, "root": {"level": "INFO", "handlers": list(handlers)}}


def doctor(folder, given):
    """`python -m logsluice doctor` on it: (exit status, stdout). Nothing may come on stderr."""
    (folder / "log.json").write_text(json.dumps(given), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "logsluice", "doctor", "--config", "log.json"],
        cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


# --- a file ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_logrotate(monkeypatch, tmp_path):
    """This machine's own files of logrotate are not the tests'."""
    monkeypatch.setattr(file, "LOGROTATE", (str(tmp_path / "logrotate.d"),))


def of_file(path, config=None, **options):
    options = {"when": "midnight", **options}
    return list(check_file(settings_from({"filename": str(path), **options}, FileSettings), config))


@pytest.fixture
def closed():
    """A folder that a user who is not root sees, and may not write into."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "app.log").write_text("", encoding="utf-8")
        (folder / "app.log").chmod(0o444)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


@contextmanager
def not_root():
    """Do what follows as `nobody`, where this is root, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_is_there_and_nothing_is_changed(tmp_path):
    path = tmp_path / "logs" / "app.log"
    with logging_to(path, when="midnight") as log:
        log(3)
        assert log.flush()
        before = path.read_bytes()
        found = of_file(path)
    assert {one.status for one in found} <= {OK, WARN}
    assert only(found, f"{path} can be written").status == OK
    assert only(found, "its lock can be taken").status == OK
    assert only(found, "the handler rotates it (when=midnight)").status == OK
    assert path.read_bytes() == before


def test_a_file_that_is_not_there_is_not_made(tmp_path):
    path = tmp_path / "logs" / "app.log"
    assert only(of_file(path), "is not there yet; the first record makes it").status == OK
    assert not path.parent.exists()


def test_a_folder_that_this_user_may_not_write_into(closed):
    with not_root():
        (found,) = of_file(closed / "logs" / "other.log")
        assert found.status == FAIL
        assert f"may not write into {closed}" in found.what
        assert "run doctor as the user that your program runs as; if it is this one: chown " in found.next


def test_a_file_that_this_user_may_not_write(closed):
    with not_root():
        (found,) = of_file(closed / "app.log")
    assert (found.status, "0444) cannot be written by user" in found.what) == (FAIL, True)
    assert (
        f"chown {pwd.getpwuid(pwd.getpwnam('nobody').pw_uid if os.geteuid() == 0 else os.geteuid())[0]}" in found.next
    )


@pytest.mark.parametrize(("when", "status"), [("midnight", FAIL), (None, WARN)])
def test_a_file_whose_folder_is_closed_cannot_be_rotated(closed, when, status):
    closed.chmod(0o755)
    (closed / "app.log").chmod(0o666)
    closed.chmod(0o555)
    with not_root():
        assert only(of_file(closed / "app.log", when=when), "cannot be rotated", "chown").status == status


def test_owner_and_mode_that_are_others_than_asked_for(tmp_path):
    path = tmp_path / "app.log"
    path.write_text("", encoding="utf-8")
    path.chmod(0o604)
    os.chown(path, 1, 1)
    found = of_file(path, mode="0640", owner="0:0")
    assert only(found, "has mode 0604").next == f"chmod 0640 {path}"
    assert only(found, "belongs to").next == f"chown 0:0 {path}"
    assert "doctor runs as root, who may write anywhere" in only(found, "can be written").what
    path.chmod(0o640)
    os.chown(path, 0, 0)
    assert not [one for one in of_file(path, owner="0:0") if "has mode" in one.what or "belongs" in one.what]


def test_an_owner_that_may_not_be_given(closed):
    closed.chmod(0o777)
    with not_root():
        found = only(of_file(closed / "new.log", owner="1:1"), "may not give files to 1:1")
    assert found.status == WARN


def test_a_file_where_a_folder_belongs(tmp_path):
    (tmp_path / "logs").write_text("", encoding="utf-8")
    (found,) = of_file(tmp_path / "logs" / "app.log")
    assert (found.status, "logs is no folder" in found.what) == (FAIL, True)


def test_a_lock_that_another_process_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "LOCK_SECONDS", 0.05)
    path = tmp_path / "app.log"
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = only(of_file(path), "has held the lock of")
    assert found.status == FAIL
    assert found.what.startswith(f"process {os.getpid()} has held the lock")
    assert only(of_file(path), "its lock can be taken")


def test_disks_that_are_full_small_read_only_or_memory(tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs") as place:
        path = place / "app.log"
        found = of_file(path, max_bytes=1_000_000)
        assert only(found, "is on tmpfs, which is memory").status == WARN
        grow = only(found, "with what is rotated it may grow to")
        assert (grow.status, "set total_bytes to at most 4194304" in grow.next) == (WARN, True)
        assert only(of_file(path, max_bytes=100_000, total_bytes=1_000_000), "it may grow to").status == OK
        (place / "big").write_bytes(bytes(3 << 20))
        full = only(of_file(path), "a batch has no room")
        assert (full.status, full.next.startswith("make room there")) == (FAIL, True)
        remount(place, "ro")
        (found,) = of_file(path)
        assert (found.status, "is on a read-only disk" in found.what) == (FAIL, True)
        remount(place, "rw")


@pytest.mark.parametrize(("kind", "said"), [("nfs4", "need locks (flock)"), ("overlay", "goes with the container")])
def test_other_file_systems(tmp_path, monkeypatch, kind, said):
    """What this machine does not have is told by its name."""
    monkeypatch.setattr(file, "file_system", lambda path: kind)
    assert only(of_file(tmp_path / "app.log"), said).status == WARN


LOGROTATE = """
# a remark with a { in it
weekly
/srv/other.log "%s/*.log" {
    %s
    postrotate
        test -e ${X} && kill -HUP 1
    endscript
}
"""


@pytest.mark.parametrize(
    ("directives", "options", "said", "status"),
    [
        ("daily", {}, "two rotate", WARN),
        ("daily", {"when": None}, "logrotate rotates it", OK),
        ("copytruncate", {"when": None}, "what is logged between its copy and its cut is lost", WARN),
    ],
)
def test_logrotate_beside_the_handler(tmp_path, directives, options, said, status):
    (tmp_path / "logrotate.d").mkdir()
    (tmp_path / "logrotate.d" / "shop").write_text(LOGROTATE % (tmp_path, directives), encoding="utf-8")
    assert only(of_file(tmp_path / "app.log", **options), said, "shop").status == status
    assert not [one for one in of_file(tmp_path / "logs" / "app.log") if "logrotate.d" in one.what]


def test_nobody_rotates(tmp_path):
    found = only(of_file(tmp_path / "app.log", when=None), "nobody rotates")
    assert (found.status, f"logsluice preset logrotate --filename {tmp_path}/app.log" in found.next) == (WARN, True)


def test_others_that_write_into_the_same_file(tmp_path):
    path = str(tmp_path / "app.log")
    old = {"class": "logging.handlers.RotatingFileHandler", "filename": path}
    ours = {"class": "logsluice.JsonFileHandler", "filename": path, "when": "midnight"}
    status, out = doctor(tmp_path, configuration(a=ours, b={**ours, "level": "ERROR"}, old=old))
    assert status == 0, out
    assert "'old' (logging.handlers.RotatingFileHandler) writes into" in out
    assert "without its lock, and renames it" in out
    assert "'a' and 'b' write into one file: what reaches both is stored twice" in out
    assert not (tmp_path / "app.log").exists()


# --- an endpoint ----------------------------------------------------------------------------------------------------


def of_endpoint(url, **options):
    found = list(check_endpoint(HttpHandler(url=url, **options)))
    assert CANARY not in repr(found)
    return found


@pytest.mark.parametrize(
    ("format_", "answer", "path"),
    [
        ("otlp", Answer(200, {}), "/v1/logs"),
        ("loki", Answer(204), "/push"),
        ("loki", Answer(422, "at least one stream"), "/push"),
        ("elasticsearch", Answer(400, {"error": "request body is required"}), "/_bulk"),
    ],
)
def test_a_request_without_records_where_the_format_has_one(format_, answer, path):
    with Stub(answer) as stub:
        found = of_endpoint(stub.url(path), format=format_, token=CANARY)
        (request,) = stub.requests
    assert {one.status for one in found} == {OK}, found
    assert "whether it takes yours is not checked" in only(found, "without records as it should").what
    assert request.headers["authorization"] == f"Bearer {CANARY}"
    assert request.body in {b'{"resourceLogs":[]}', b'{"streams":[]}', b""}


@pytest.mark.parametrize("format_", ["ndjson", "json", lambda records: b""])
def test_other_formats_are_asked_by_head_and_send_nothing(format_):
    with Stub() as stub:
        found = of_endpoint(stub.url(), format=format_)
        assert stub.requests == []
    assert {one.status for one in found} == {OK}, found
    assert "answers HEAD with 501; no record was sent" in only(found, "HEAD").what
    assert only(found, "no token is sent")
    assert "are counted and lost" in only(found, "dead_letters= or fallback= keeps them").what


@pytest.mark.parametrize(
    ("answer", "status", "what", "step"),
    [
        (Answer(401), FAIL, "answered 401 Unauthorized", "correct token=, token_env= or token_file="),
        (Answer(403), FAIL, "answered 403 Forbidden", "allow it to write here"),
        (Answer(404), FAIL, "answered 404 Not Found", "correct the path of url="),
        (Answer(405), FAIL, "answered 405 Method", "records are sent by POST"),
        (Answer(301, headers={"Location": "https://b.example/x"}), FAIL, "leads to https://b.example", "in url="),
        (Answer(400), FAIL, "answered 400 Bad Request", "correct url= or format="),
        (Answer(503), WARN, "answered 503 Service Unavailable", "records wait"),
        (Answer(drop=True), FAIL, "closed the connection without an answer", "endpoint's log"),
    ],
)
def test_a_refused_request_says_what_to_change(answer, status, what, step):
    with Stub(answer) as stub:
        found = only(of_endpoint(stub.url(f"/in?key={CANARY}"), format="otlp"), what)
    assert (found.status, step in found.next) == (status, True), found


def test_a_page_that_is_no_elasticsearch():
    with Stub(Answer(200, "<html>welcome</html>")) as stub:
        found = only(of_endpoint(stub.url(), format="elasticsearch"), "the reply is none of _bulk")
    assert (found.status, "path of url=" in found.next) == (FAIL, True)


@pytest.mark.parametrize(
    ("status", "mark", "said"),
    [(401, FAIL, "token_env="), (302, FAIL, "url="), (404, WARN, "or it knows POST alone"), (405, OK, "with 405"), (503, WARN, "records wait")],
)  # fmt: skip
def test_what_head_is_answered_with(status, mark, said):
    with Stub() as stub:
        stub.server.RequestHandlerClass.do_HEAD = lambda handler: (handler.send_response(status), handler.end_headers())
        assert only(of_endpoint(stub.url()), said, str(status)).status == mark


def test_nobody_listens_and_no_such_host(tmp_path):
    found = only(of_endpoint(f"http://127.0.0.1:{free_port()}/in"), "Connection refused")
    assert (found.status, found.next) == (FAIL, "start the endpoint, or correct host and port in url=")
    found = only(of_endpoint("https://nowhere.invalid/in"), "host nowhere.invalid is not known here")
    assert (found.status, "getent hosts nowhere.invalid" in found.next) == (FAIL, True)


def test_tls_and_its_faults(tmp_path):
    key, made = certificate(tmp_path, "good")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made, key)
    with Stub(context=context) as stub:
        url = stub.url(scheme="https", host="localhost")
        found = of_endpoint(url, format="otlp", ca_file=str(made))
        assert only(found, "can be reached, with TLS, its certificate is trusted").status == OK
        wrong = only(of_endpoint(url), "its certificate is refused")
        assert (wrong.status, "let ca_file= name the authority that signed it" in wrong.next) == (FAIL, True)
        assert only(of_endpoint(url, ca_file=str(key)), "let ca_file= name a PEM file").status == FAIL
        believed = only(of_endpoint(url, verify=False), "whoever answers in the place of localhost is believed")
        assert (believed.status, believed.next) == (WARN, "ca_file= names your own authority")
        plain = [one for one in of_endpoint(stub.url()) if one.about == "request"]
        assert [one.status for one in plain] == [FAIL]
    with Stub() as stub:
        found = only(of_endpoint(stub.url(scheme="https", host="localhost")), "TLS failed")
        assert (found.status, "or say http://" in found.next) == (FAIL, True)


def test_token_sources(tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text(f"{CANARY}\n", encoding="utf-8")
    path.chmod(0o644)
    with Stub() as stub:
        found = of_endpoint(stub.url(), token_file=str(path))
        assert only(found, f"a token comes from {path} (never shown)").status == OK
        assert only(found, "every user of this machine may read").next == f"chmod o-rwx {path}"
        path.write_text(f"two\n{CANARY}", encoding="utf-8")
        assert only(of_endpoint(stub.url(), token_file=str(path)), "no printable ASCII").status == FAIL
        path.unlink()
        gone = only(of_endpoint(stub.url(), token_file=str(path)), "No such file or directory")
        assert (gone.status, f"let it be read from {path} by this user" in gone.next) == (FAIL, True)

        def broken():
            raise ValueError(CANARY)

        assert only(of_endpoint(stub.url(), token=broken), "could not be read (ValueError)").status == FAIL
        assert stub.connections == 1  # without a token nobody is asked


def test_a_token_that_goes_unencrypted():
    with Stub(host="0.0.0.0") as stub:
        found = only(of_endpoint(stub.url(host="127.0.0.2"), token=CANARY), "unencrypted")
    assert (found.status, found.next) == (WARN, "https:// would hide it")


def test_a_proxy_that_refuses(monkeypatch):
    with Stub() as stub:
        stub.refuses_tunnels = 407
        url = f"https://u:{CANARY}@localhost:1/in"
        found = only(of_endpoint(url, proxy=f"http://127.0.0.1:{stub.port}"), "the proxy answered 407")
    assert (found.status, "correct proxy=" in found.next) == (FAIL, True)


def test_dead_letters_that_cannot_be_kept(closed):
    with Stub() as stub, not_root():
        found = of_endpoint(stub.url(), dead_letters=str(closed / "dead.jsonl"))
    assert only(found, "dead.jsonl is to be made", "chown").status == FAIL


def test_without_the_extra_it_says_what_to_install(tmp_path):
    given = configuration(http={"class": "logsluice.HttpHandler", "url": "http://127.0.0.1:1/in"})
    text = f"import sys; sys.modules['urllib3'] = None\nimport logsluice.cli\nsys.exit(logsluice.cli.main(['doctor', '--config', {str(tmp_path / 'log.json')!r}]))"
    (tmp_path / "log.json").write_text(json.dumps(given), encoding="utf-8")
    program = run_program(text)
    assert program.returncode == 1
    assert "HttpHandler needs urllib3 2 or later" in program.stdout
    assert "next: pip install 'logsluice[http]' for the Python that runs your program" in program.stdout


# --- a sink of one's own --------------------------------------------------------------------------------------------


class Whole(Sink):
    def __init__(self, stream, path="x"):
        self.path = path
        if path == "raises":
            raise ValueError(CANARY)

    def open(self):
        if self.path == "refuses":
            from logsluice.delivery import Failure

            raise SinkError(Failure("the shelf is locked", hint="ask for the key"))
        if self.path == "fails":
            raise OSError(CANARY)

    def write(self, batch, counts):
        raise AssertionError("doctor writes nothing")


class Idle(Sink):
    def __init__(self, stream):
        pass


class Stranger:
    def __init__(self, stream):
        pass

    def write(self, batch, counts):
        pass


def of_sink(kind, **options):
    (found,) = check_sink(settings_from({"sink": kind, "options": options}, SinkSettings))
    assert CANARY not in repr(found)
    return found


def test_a_whole_sink_and_its_faults():
    assert of_sink(Whole).status == OK
    for kind, options, what, step in (
        (Whole, {"pth": CANARY}, "got an unexpected keyword argument 'pth'", "correct options="),
        (Whole, {"path": "raises"}, "raises ValueError when it is made", "by hand"),
        (Whole, {"path": "refuses"}, "does not open: the shelf is locked", "ask for the key"),
        (Whole, {"path": "fails"}, "does not open: the sink raised OSError", "call open() of"),
        (Idle, {}, "lacks write", "write `write`"),
        (Stranger, {}, "lacks accepts_any, open, idle", "inherit from logsluice.sinks.Sink"),
    ):
        found = of_sink(kind, **options)
        assert (found.status, what in found.what, step in found.next) == (FAIL, True, True), found


# --- the configuration as a whole -----------------------------------------------------------------------------------


def test_all_kinds_in_one_configuration(tmp_path):
    (tmp_path / "own.py").write_text(
        "from logsluice.sinks import Sink\nclass Own(Sink):\n    def __init__(self, stream): pass\n"
        "    def write(self, batch, counts): pass\n"
    )
    with Stub(Answer(200, {})) as stub:
        given = configuration(
            console={"class": "logsluice.ConsoleHandler"},
            file={"class": "logsluice.JsonFileHandler", "filename": "app.log", "when": "midnight"},
            http={"class": "logsluice.HttpHandler", "url": stub.url(), "format": "otlp"},
            own={"class": "logsluice.SinkHandler", "sink": "own.Own"},
        )
        status, out = doctor(tmp_path, given)
        assert [request.body for request in stub.requests] == [b'{"resourceLogs":[]}']
    assert status == 0, out
    assert "FAIL" not in out
    for line in ("'console' of log.json: its options are right", "app.log is not there yet", "otlp request without",
                 "own.Own takes its options and opens", "root (level INFO): INFO, WARNING and ERROR reach 'http'"):  # fmt: skip
        assert line in out
    assert not (tmp_path / "app.log").exists()


@pytest.mark.parametrize(
    ("handler", "what", "step"),
    [
        ({"class": "logsluice.JsonFilehandler"}, "there is no class", 'write "class": "logsluice.JsonFileHandler"'),
        ({"class": "logsluice.JsonFileHandler"}, "filename is missing", "correct handler 'it'"),
        ({"class": "logsluice.ConsoleHandler", "colour": 1}, "unknown option 'colour'", "correct handler 'it'"),
        ({"class": "logsluice.SinkHandler", "sink": "nowhere.Sink"}, "No module named 'nowhere'", "your program's Python"),
        ({"class": "logsluice.HttpHandler", "url": f"http://h:x:{CANARY}"}, "url must be http", "correct handler 'it'"),
        ({"class": "logsluice.HttpHandler", "url": "http://h/", "token_env": "NO_TOKEN"}, "'NO_TOKEN', which is not set", "export NO_TOKEN=..."),
    ],
)  # fmt: skip
def test_options_that_are_wrong(tmp_path, monkeypatch, capsys, handler, what, step):
    (tmp_path / "log.json").write_text(json.dumps(configuration(it=handler)), encoding="utf-8")
    assert main(["doctor", "--config", str(tmp_path / "log.json")]) == 1
    out = capsys.readouterr().out
    assert what in out
    assert step in out
    assert CANARY not in out
