"""redaction.py: no secret is ever in a frame, in whatever place it was logged."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logsluice import context
from logsluice.errors import ConfigError
from logsluice.patterns import Detector
from logsluice.redaction import SECRET_KEYS, Redactor
from support.records import make_intake, make_record, marks_of, read_frame, stored


@pytest.fixture(autouse=True)
def _nothing_bound():
    yield
    context.clear()


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["token", "Token", "TOKEN", "x-api-key", "X-Api-Key", "X_API_KEY", "Authorization", "Set-Cookie", *sorted(SECRET_KEYS)])  # fmt: skip
def test_a_value_under_a_secret_key_is_not_stored(key):
    """Matched whole, after lower-casing and "-" to "_"."""
    row = stored(make_record(**{key: "hunter2"}))
    assert row["attributes"][key] == "[redacted]"
    assert [key] == marks_of(row)["redacted"]


@pytest.mark.parametrize(
    "key", ["token_count", "tokens", "passwords_changed", "secretary", "author", "cookies_accepted", "", " token"]
)
def test_a_key_that_only_looks_secret_keeps_its_value(key):
    """`token_count` is a number worth keeping."""
    assert stored(make_record(**{key: 17}))["attributes"][key] == 17


def test_a_secret_key_at_any_depth():
    """In dicts in lists in tuples, of whatever type its value is."""
    value = {"a": [({"b": {"Password": ["hunter2", {"x": "hunter2"}]}},)], "token": None, "n": 1}
    row = stored(make_record(request=value))
    assert "hunter2" not in str(row)
    assert row["attributes"]["request"] == {"a": [[{"b": {"Password": "[redacted]"}}]], "token": "[redacted]", "n": 1}
    assert marks_of(row)["redacted"] == ["request.a.b.Password", "request.token"]


def test_a_secret_key_of_bytes():
    """The headers of ASGI have bytes for keys."""
    row = stored(make_record(headers={b"authorization": b"Basic aHVudGVyMg==", b"accept": b"*/*"}))
    assert row["attributes"]["headers"] == {"b'authorization'": "[redacted]", "b'accept'": "b'*/*'"}


def test_a_secret_among_bound_values():
    """As among extras."""
    context.bind(api_key="hunter2", tenant="north")
    assert {key: value for key, value in stored(make_record())["attributes"].items() if key != "logsluice"} == {
        "api_key": "[redacted]",
        "tenant": "north",
    }


def test_a_secret_in_the_arguments_of_a_wrong_format_string():
    """They are kept as values, so that keys say what is secret."""
    row = stored(make_record("%d %d", ({"password": "hunter2", "n": 1}, "postgres://u:hunter2@h/db")))
    assert "hunter2" not in str(row)
    assert marks_of(row)["args"] == [{"password": "[redacted]", "n": 1}, "postgres://u:***@h/db"]


# --- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://bob:hunter2@db/shop", "postgresql://bob:***@db/shop"),
        ("redis://:hunter2@cache:6379/0", "redis://:***@cache:6379/0"),
        ("amqp://u:12345@q//", "amqp://u:***@q//"),
        ("https://u:p%40ss@h/x?y=1 and ftp://a:b@c", "https://u:***@h/x?y=1 and ftp://a:***@c"),
        ("https://u:p@ss@h/", "https://u:***@h/"),
        ("x://u:hunter2@h\nx://u:hunter3@h", "x://u:***@h\nx://u:***@h"),
        ("http://host:8080/@name", "http://host:8080/@name"),
        ("http://host:8080 is up, mail a@b", "http://host:8080 is up, mail a@b"),
        ("https://host/path", "https://host/path"),
        ("https://bob@host/path", "https://bob@host/path"),
        ("mail bob:x@host", "mail bob:x@host"),
    ],
)
def test_a_password_in_a_url_is_not_stored(text, expected):
    """In any text; what is no password stays."""
    row = stored(make_record(text))
    assert expected == row["message"]
    assert (text != expected) == ("redacted" in marks_of(row))


# --- patterns --------------------------------------------------------------------------------------------------------

CARD, JWT, AWS, BEARER = (
    "4111 1111 1111 1111",
    "eyJhbGciOi.eyJzdWIiOi.SflKxwRJSM",
    "AKIAIOSFODNN7EXAMPLE",
    "Bearer abcdef0123456789",
)


@pytest.mark.parametrize("secret", [CARD, JWT, AWS, BEARER])
def test_patterns_are_opt_in(secret):
    """Each costs a search of every text."""
    record = make_record(f"got {secret} here", note=f"x {secret}", user_id=f"u {secret}", threadName=f"t {secret}")
    assert secret in str(stored(record))
    row = stored(record, redact="patterns")
    assert secret not in str(row)
    assert row["message"] == "got [redacted] here"
    assert {"message", "note", "thread", "user_id"} <= set(marks_of(row)["redacted"])


def test_a_pattern_of_the_users_own():
    """As a regular expression."""
    row = stored(make_record("visa no. X-1234"), redact={"patterns": [r"X-\d+"]})
    assert row["message"] == "visa no. [redacted]"


def test_redaction_switched_off():
    """`redact=None` stores everything as it is."""
    row = stored(make_record("x://u:hunter2@h", password="hunter2"), redact=None)
    assert (row["message"], row["attributes"]) == ("x://u:hunter2@h", {"password": "hunter2"})


# --- a corpus of secrets in every place ------------------------------------------------------------------------------


def corpus():
    """A hundred secrets, each of a shape of its own."""
    pick = random.Random(17)
    alphabet = string.ascii_letters + string.digits + "!$*+,-.:;=_~%&?#/"
    return ["S3" + "".join(pick.choice(alphabet) for _ in range(pick.randint(6, 40))) for _ in range(100)]


class Leaky(Exception):
    pass


def in_every_place(secret):
    """(where, record) for each of the places where a program may log this secret."""
    url = f"postgresql://bob:{secret}@db:5432/shop"
    try:
        raise Leaky(f"cannot reach {url}") from ValueError(url)
    except Leaky as error:
        info = (Leaky, error, None)
    yield "message", make_record(f"connecting to {url}")
    yield "argument", make_record("connecting to %s", (url,))
    yield "template", make_record(f"connecting to {url.replace('%', '%%')} %s", (1,))
    yield "extra", make_record(dsn=url, password=secret)
    yield "nested extra", make_record(request={"headers": [{"Authorization": secret}], "urls": (url,), url: 1})
    yield "exception", make_record("failed", exc_info=info)
    yield "exception text", make_record("failed", exc_text=f"ValueError: {url}")
    yield (
        "names",
        make_record(name=url, threadName=url, funcName=url, pathname=url, taskName=url, levelname=url, processName=url),
    )
    yield "id and stack", make_record(user_id=url, stack_info=f"File {url}")
    yield "wrong format string", make_record("%d", ({"token": secret, "url": url},))
    yield "dict message", make_record({"event": url, "token": secret, "exc_info": info})
    yield "repr", make_record(thing=[Thing(url)])


class Thing:
    def __init__(self, url):
        self.url = url

    def __repr__(self):
        return "x" * 5000 + f"<Thing {self.url}>" + "x" * 5000


def test_no_secret_of_the_corpus_is_in_any_frame():
    """A hundred secrets in a dozen places, on both ways: no leak, and the row says that something was taken out."""
    leaks, intake = [], make_intake()
    for secret in corpus():
        for where, record in in_every_place(secret):
            for _ in range(2):
                frame = intake.prepare(record)
                # Escaped as a frame escapes it, and as it is.
                if secret in frame.decode() or secret in str(read_frame(frame)):
                    leaks.append((where, secret))
            if not marks_of(read_frame(frame)):
                leaks.append((where, "unmarked"))
    assert leaks == []


def test_a_secret_where_a_long_text_is_cut_is_taken_out_first():
    """Half a URL is not recognised as one."""
    for offset in range(0, 120, 7):
        head = "x" * ((8192 - 40) // 2 - offset)
        row = stored(make_record(thing=Repr(head + " postgresql://bob:hunter2hunter2@db/shop " + "y" * 20_000)))
        assert "hunter" not in str(row)


class Repr:
    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text


# --- failing closed --------------------------------------------------------------------------------------------------


def broken(_text):
    raise RuntimeError("hunter2")


def test_a_redactor_that_raises_stores_no_text():
    """It fails closed: what cannot be searched is left out, and the logging call does not raise."""
    redactor = Redactor("patterns")
    redactor._detectors = (Detector("broken", (), broken),)
    row = stored(make_record("secret hunter2 %s", ("hunter2",), note="hunter2", user_id="hunter2"), redactor=redactor)
    assert "hunter2" not in str(row)
    assert row["message"] == "[redacted]"


def test_a_redactor_that_cannot_judge_keys_stores_no_value():
    """The record's place is kept, nothing of its content."""

    class Judge(Redactor):
        def is_secret(self, key):
            raise RuntimeError

    row = stored(make_record("hello", note="hunter2"), redactor=Judge("keys"))
    assert "hunter2" not in str(row)


# --- the cost of a hostile text --------------------------------------------------------------------------------------

HOSTILE = {
    "letters": "a" * 100 + "!",
    "colons": "://" + ":" * 97,
    "urls without an end": "://u:",
    "urls with digits": "://u:1111111111",
    "at signs": "://u:@@@@@@@@",
    "digits": "1" * 19,
    "digits and spaces": "1 1 1-1 ",
    "bearer": "Bearer ",
    "token": "eyJaaaaaaaa.",
    "aws": "AKIA",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("option", ["keys", "patterns"])
def test_work_grows_with_the_text_and_not_faster(option, piece):
    """Four times the text must not take more than eight times as long: quadratic would be sixteen (H-07)."""
    import time

    redactor = Redactor(option)

    def seconds(length):
        text = "://" + (piece * (length // len(piece) + 1))[:length]
        least = float("inf")
        for _ in range(5):
            start = time.thread_time()
            redactor.clean(text)
            least = min(least, time.thread_time() - start)
        return least

    seconds(1000)
    assert seconds(40_000) < 8 * seconds(10_000) + 0.002


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=":/@ u1\"'<>%\n\\", max_size=60))
def test_cleaning_twice_changes_nothing_more(text):
    """What it leaves holds nothing that it would take."""
    once = Redactor("patterns").clean(text)
    assert once == Redactor("patterns").clean(once)


def test_keys_of_an_attacker_do_not_fill_the_memory():
    """The memory of answers is bounded."""
    redactor = Redactor("keys")
    for i in range(10_000):
        redactor.is_secret(f"k{i}")
    assert len(redactor._answers) <= 4096


# --- the option ------------------------------------------------------------------------------------------------------


def test_more_keys_in_a_list_or_a_mapping():
    """They are added to the usual ones."""
    for option in (["Session-Id"], ("session_id",), {"keys": ["session_id"]}):
        redactor = Redactor(option)
        assert redactor.is_secret("session-id")
        assert redactor.is_secret("password")
        assert not redactor.is_secret("session")


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("all", "must be"), (5, "must be"), (True, "must be"), ({"key": []}, "knows"), ({"keys": "password"}, "lists of strings"),
        ([1], "lists of strings"), ({"patterns": ["("]}, "regular expression"), ({"patterns": "x"}, "lists of strings"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_an_error_that_says_what_to_write(option, word):
    """When logging is configured, not at the first record."""
    with pytest.raises(ConfigError, match=word):
        Redactor(option)
