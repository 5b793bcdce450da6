"""Every argument of every command, hostile: what comes back is an exit status and a sentence, never a traceback."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import socket
import string
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logsluice import cli
from logsluice.cli.arguments import utf8

# In CI the same examples each time; HOSTILE_EXAMPLES=5000 looks elsewhere, for as long as somebody likes.
IN_CI = 8  # examples of each command: 2 s of all, and what was found by more is in FOUND
EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", str(IN_CI)))
SECRET = "hunter2-not-to-be-shown"
HOSTILE = (
    "", " ", "\0", "a\0b", "\udc80", "\ud800x", "--", "-", "-1", "0", "1", "9" * 400, "-" + "9" * 400, "1e400", "nan",
    "inf", "-inf", "1_000", "٣", "²", "½", "१५m", "x" * 70_000, "\x1b[31m", "\r\n", "\u202e", "日本", "é" * 40, "'", '"',
    'a"."b', "'; DROP TABLE logs; --", "%s", "%(schema)s", "{}", "\\", "*", ".", "..", "/", "//", "~", "a.b.c", "=", "==",
    "=x", "x=", ":", "::", ":x", "a:b", "1:2", "1~2", "~~", "0001-01-01~1~1", "9999-12-31T23:59:59~1~1",
    "999999w", "999999d", "999999h", "0m", "1d", "15m", "-15m", "yesterday", "now", "0001-01-01", "9999-12-31",
    "9999-12-31T23:59:60Z", "2026-02-30", "0000-00-00", "2026-11-22T25:00:00+99:99", "99999999999", "today",
    "../../etc/passwd", "/etc/localtime", "Europe/Paris", "local", "UTC", "\0/UTC", "all", "*=999999w", "DEBUG=3d", "*=forever",
    "log_type=", "os", "os.path", "..x", "level>=loud", "level>=error", '"', "(((", "a OR b", "attributes.a.b.c>1e99",
    "00000000-0000-0000-0000-000000000000", "00000000000000000000000000000000", "9223372036854775808~9223372036854775808",
    "9223372036854775808:1", "18446744073709551616:18446744073709551616",
)  # fmt: skip
SLOW = {
    "demo",
    "top",
}  # of these only what argparse refuses, and `top --once`: they run for as long as they are asked to


@pytest.fixture(autouse=True)
def _no_net(monkeypatch):
    """The sentence that main() has for bugs must hide none from these tests."""
    monkeypatch.setenv("LOGSLUICE_DEBUG", "1")


@pytest.fixture(scope="module")
def parsers():
    """{words of a command: its parser}, subcommands included."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for name in cli.COMMANDS:
        importlib.import_module(f"logsluice.cli.{name}").register(commands)
    return dict(leaves(parser, ()))


def leaves(parser, words):
    inner = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    for action in inner:
        for name, sub in action.choices.items():
            yield from leaves(sub, (*words, name))
    if not inner:
        yield words, parser


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Names of files: a folder, one that is not there, and one of each kind that is no JSON."""
    folder = tmp_path_factory.mktemp("hostile")
    contents = {"binary": bytes(range(256)), "empty": b"", "half": b'{"*": "30', "list": b"[1]", "deep": b"[" * 100_000}
    for name, content in {**contents, "number": b'{"*": 1e999}', "long": b"9" * 5000, "raising.py": b"1 / 0"}.items():
        (folder / name).write_bytes(content)
    return [str(folder), str(folder / "absent"), *(str(folder / name) for name in (*contents, "number", "long"))]


@pytest.fixture(scope="module")
def refused():
    """A DSN whose server refuses at once: the port is bound and nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"host=127.0.0.1 port={held.getsockname()[1]} user=u password={SECRET} dbname=d sslmode=disable"


def value(action, odd):
    """A strategy for the value of an option or an argument."""
    good = st.sampled_from([str(one) for one in action.choices]) if action.choices else st.nothing()
    return good | odd


def arguments(parser, odd):
    """A strategy for the words behind a command: some of its options, each once, and its arguments."""

    @st.composite
    def drawn(draw):
        words = []
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction) or "--dsn" in action.option_strings:
                continue
            least = 1 if action.required and action.nargs not in {"*", "?"} else 0
            most = 1 if action.option_strings or action.nargs in {None, "?"} else 3
            for _ in range(draw(st.integers(least if draw(st.booleans()) else 1, most))):
                given = [] if action.nargs == 0 else [draw(value(action, odd))]
                name = draw(st.sampled_from(action.option_strings)) if action.option_strings else ""
                joined = [f"{name}={given[0]}"] if name.startswith("--") and given and draw(st.booleans()) else None
                words += joined or [*([name] if name else []), *given]
        return words

    return drawn()


def attempt(argv):
    """What a command does with these words: its status and all that it printed."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape"), io.StringIO()
    err.close = out.close = lambda: None
    path, stdin = list(sys.path), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"\xff\0 text\n"))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = cli.main(argv)
            except SystemExit as ended:
                status = ended.code
    finally:
        sys.path[:], sys.stdin = path, stdin
    out.flush()
    return status, out.buffer.getvalue().decode("utf-8", "replace"), err.getvalue()


def check(argv):
    status, out, err = attempt(argv)
    assert status in {0, 1, 2}, (status, argv)
    assert "Traceback (most" not in out + err, argv
    assert SECRET not in out + err, argv
    if status == 2:
        assert err.strip(), argv
    return status, out, err


def odd_values(paths):
    letters = st.text(st.sampled_from(string.printable + "é日\0\udc80\u202e"), max_size=12)
    return st.sampled_from([*HOSTILE, *paths]) | letters


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_no_argument_gives_a_traceback_where_no_server_answers(command, parsers, paths, refused, monkeypatch, tmp_path):
    monkeypatch.setenv("LOGSLUICE_DSN", refused)
    monkeypatch.chdir(tmp_path)
    mine = {words: parser for words, parser in parsers.items() if words[0] == command and command not in SLOW}
    for words, parser in mine.items():

        @settings(max_examples=max(2, EXAMPLES // len(mine)), derandomize=EXAMPLES <= IN_CI, database=None)
        @given(st.just(words), arguments(parser, odd_values(paths)))
        def fuzzed(words, given):
            if not any(word.startswith("--e") for word in given):  # `maintain --every` goes on until a signal
                check([*words, *given])

        fuzzed()


@pytest.mark.parametrize("command", sorted(SLOW))
def test_what_runs_long_refuses_hostile_values_at_once(command, parsers, refused, monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DSN", refused)
    typed = [one for one in parsers[(command,)]._actions if one.type is not None and "--dsn" not in one.option_strings]
    assert typed
    for action in typed:
        for odd in ("\0", "\udc80", "nan", "9" * 400, "-1", "x" * 70_000) if action.type is not utf8 else ("\udc80",):
            status, _, err = check([command, f"{action.option_strings[0]}={odd}"])
            assert status == 2
            assert action.option_strings[0] in err


FOUND = (  # by these tests, or while they were written: each was a traceback
    ["types", ""], ["types", "..x"], ["types", "raising"], ["journal", "a\0b"], ["prune", "--keep", "999999w"],
    ["maintain", "--once", "--types", ""], ["maintain", "--once", "--types", "raising"], ["maintain", "--once", "--rules", "deep"],
    ["maintain", "--once", "--rules", "number"], ["maintain", "--once", "--keep", f"*={'9' * 5000}d"],
    ["maintain", "--once", "--keep", "*=999999w"], ["dead", "drop", "--older-than", "999999w"], ["doctor", "--config", "deep"],
    ["preset", "logrotate", "--filename", "x" * 5000],
)  # fmt: skip


@pytest.mark.parametrize("argv", FOUND, ids=range(len(FOUND)))
def test_what_was_a_traceback_is_a_sentence(argv, paths, refused, monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DSN", refused)
    monkeypatch.chdir(paths[0])
    status, out, err = check(argv)
    assert status in {1, 2}
    assert (out + err).strip()
    assert "cannot connect" not in err  # it is the argument that is told of


def test_a_bug_is_told_in_one_line_and_shown_when_it_is_asked_for(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr("logsluice.cli.version.run", broken)
    with pytest.raises(ZeroDivisionError):
        attempt(["version"])
    monkeypatch.delenv("LOGSLUICE_DEBUG")
    status, out, err = attempt(["version"])
    assert (status, out, err.count("\n")) == (70, "", 1)
    assert "ZeroDivisionError: this is a bug in logsluice" in err
    assert "LOGSLUICE_DEBUG=1" in err
    assert SECRET not in err


DSNS = (
    "", " ", "=", "host", "host=", "port=x", "port=99999999999", "postgresql://", "postgresql://[::1", "postgres://u:%zz@h/d",
    f"postgresql://u:{SECRET}%@h/d", f"host=127.0.0.1 port=1 password='{SECRET}", "service=absent", "passfile=/", "\0", "\udc80",
    f"postgresql://u:{SECRET}@127.0.0.1:1/d?sslmode=bogus", f"host=127.0.0.1 port=1 connect_timeout=x password={SECRET}",
    f"host=127.0.0.1 port=1 password={SECRET} sslmode=disable", "host=127.0.0.1 port=1 options=-c\\ x", "x" * 70_000,
    f"password={SECRET} host=127.0.0.1,127.0.0.1 port=1,2,3", "hostaddr=999.1.1.1", "client_encoding=klingon host=127.0.0.1 port=1",
)  # fmt: skip


@pytest.mark.parametrize("dsn", DSNS, ids=range(len(DSNS)))
def test_no_dsn_gives_a_traceback_or_shows_a_password(dsn, monkeypatch):
    for name in ("PGHOST", "PGHOSTADDR"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("PGPORT", "1")  # nobody listens on tcpmux
    for words in (["tail"], ["streams", "-o", "json"]):
        status, _, err = check([*words, "--dsn", dsn])
        assert status in {1, 2}
        assert err.strip()
