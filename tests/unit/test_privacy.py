"""redact= with patterns by name, pseudonyms and encryption: what is taken out, what stays, what comes back."""

from __future__ import annotations

import hmac
import io
import json
import pickle
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logsluice import capture, cli, context, crypto, types
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.patterns import BY_NAME, DETECTORS
from logsluice.redaction import COLUMN_KEYS, Redactor
from support.records import make_intake, make_record, marks_of, read_frame, stored
from support.secrets import PLACES, PUBLISHED, SECRETS, TYPED_FIELDS, ordinary


@pytest.fixture(autouse=True)
def _nothing_bound():
    yield
    context.clear()


def record_of(place, text):
    message, args, extra, exc_info, bound = PLACES[place](text)
    context.clear()
    context.bind(**bound)
    return make_record(message, args, exc_info=exc_info, **extra)


# --- patterns ---------------------------------------------------------------------------------------------------------


def test_no_secret_of_the_corpus_is_in_any_frame():
    """Two hundred, half of them from published detectors, in nine places; also as a thread's name, and cut to a limit."""
    assert (len(SECRETS), len(PUBLISHED), len(PLACES)) == (200, 100, 9)
    intake, leaks = make_intake(redact="patterns"), []
    for text, part in SECRETS:
        for place in PLACES:
            row = read_frame(intake.prepare(record_of(place, text)))
            leaks += [(place, text)] * (part in str(row) or not marks_of(row).get("redacted"))
        context.clear()
        row = read_frame(intake.prepare(make_record("x", threadName=f"t {text}", stack_info=f"stack {text}")))
        leaks += [("names", text)] * (part in str(row))
    assert leaks == []


@pytest.mark.parametrize("form", ["\\n{}", "\x1b[32m{}\x1b[0m", "k={}", "%3D{}", "('{}',)", "{} EUR 123", "\\u003d{}"])
def test_a_secret_is_seen_beside_what_stands_around_it_in_a_log(form):
    redactor = Redactor("patterns")
    assert [text for text, part in SECRETS if part in redactor.clean(form.format(text))] == []


def test_ordinary_lines_and_the_columns_of_typed_tables_stay_as_they_are():
    redactor = Redactor("patterns")
    lines = ordinary(5000)
    assert [(line, redactor.clean(line)) for line in lines if redactor.clean(line) != line] == []
    assert [name for name in TYPED_FIELDS if redactor.is_secret(name) or redactor.clean(name) != name] == []


NAMED = {
    "bearer": "Bearer mF_9.B5f-4.1JqM", "jwt": "eyJhbGciOi.eyJzdWIiOi.SflKxwRJSM", "email": "bob@example.org",
    "card": "4111 1111 1111 1111", "iban": "DE89370400440532013000", "aws": "AKIADEADBEEFDEADBEEF",
    "private_key": "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----", "url": "/cb?access_token=s3cret&x=1",
    "github": "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", "slack": "xoxb-34532454-e039d02840a0b9379c",
    "stripe": "sk_live_ReTllpYQYfIZu2Jnf2lAPFjD", "google": "AIzaSyAnLA7NfeLquW1tJFpx_eQCxoX-oo6YyIs",
}  # fmt: skip


def test_each_pattern_can_be_had_alone_by_its_name():
    assert NAMED.keys() == BY_NAME.keys()
    for name, text in NAMED.items():
        redactor = Redactor({"patterns": [name]})
        changed = {other for other, one in NAMED.items() if redactor.clean(f"x {one}") != f"x {one}"}
        assert changed == {name}, name
        assert Redactor({"patterns": ["all"]}).clean(text) == Redactor("patterns").clean(text)


def test_ones_own_expressions_stand_beside_the_named():
    """Each is one of its own: a flag of one is none of the next's, and a group keeps its number."""
    redactor = Redactor({"keys": ["pin"], "patterns": ["email", r"(?i)acct-(\d)\1", r"X-\d+"]})
    assert redactor.clean("ACCT-77 X-12 x-12 bob@example.org") == "[redacted] [redacted] x-12 [redacted]"
    assert redactor.is_secret("pin")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4111 1111 1111 1111 123", "[redacted] 123"),
        ("2222 4111 1111 1111 1111", "2222 [redacted]"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),
        ("total 4111111111111111.00, share 0.4111111111111111", "total 4111111111111111.00, share 0.4111111111111111"),
        ("DE89370400440532013000FR1420041010050500013M02606", "[redacted]FR1420041010050500013M02606"),
        ("DE89 3704 0044 0532 0130 00 AND NL91 ABNA 0417 1643 00", "[redacted] AND [redacted]"),
        ("DE88370400440532013000", "DE88370400440532013000"),
        ("Bearer " + "aB3" * 2000, "[redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIB cut off", "[redacted]"),
        ("https://ghp-like-token-0123456@host/x", "https://[redacted]@host/x"),
        ("user%40example.org", "[redacted]"),
    ],
)
def test_where_a_secret_begins_and_ends(text, expected):
    assert Redactor("patterns").clean(text) == expected


def test_a_number_that_is_no_text_is_looked_at_too():
    row = stored(make_record("x", card=4111111111111111, micros=1764220391123456), redact="patterns")
    assert (row["attributes"]["card"], row["attributes"]["micros"]) == ("[redacted]", 1764220391123456)


def test_bytes_in_a_column_of_ones_own_are_looked_at_too():
    columns, secret = {"body": "extra.body"}, b"AKIADEADBEEFDEADBEEF"
    options = {"table": "t", "schema": "public", "columns": columns, "max_message_bytes": 1024}
    for before in (b"\x00\xff ", b"\xff" * 500 + b" "):
        row = stored(make_record("x", body=before + secret), make_intake(redact="patterns", **options))
        assert bytes.fromhex(row["body"][2:]) == (before + b"[redacted]")[:512]
        row = stored(make_record("x", body=before + secret), make_intake(**options))
        assert bytes.fromhex(row["body"][2:]) == (before + secret)[:512]


def test_what_a_wrong_format_string_says_is_cut_after_it_was_redacted():
    class Hostile:
        def __init__(self, text):
            self.text = text

        def __str__(self):
            raise ValueError(self.text)

    for offset in range(24):
        text = "x" * (2020 - offset) + " AKIADEADBEEFDEADBEEF " + "y" * 2000
        row = stored(make_record("%s", (Hostile(text),)), redact="patterns")
        assert "AKIA" not in str(row)
        assert "FBEEF" not in str(row)
        assert marks_of(row)["format_error"].startswith("ValueError: xxx")


def test_a_cut_never_leaves_half_a_secret():
    """Redacted first, then cut, wherever the cut falls."""
    secret = "AKIADEADBEEFDEADBEEF"
    for offset in range(24):
        intake = make_intake(redact="patterns", max_message_bytes=1024)
        text = "x" * (484 - offset) + f" {secret} " + "y" * 2000
        row = stored(make_record(text, note=text), intake)
        assert "AKIA" not in str(row)
        assert "FBEEF" not in str(row)
        assert marks_of(row)["cut"]


# Runs that each pattern could start in and fail at the end of.
PIECES = [
    "eyJ", "-eyJ", "eyJaaaaaaaa.", "a@", "a%40a.", "a.", "a@a.", "4111 ", "4111-1111-", "41111111111111111", "DE89 3704 ",
    "AZ21NABZ", "Bearer ", "authorization:", "authorization: a ", "bearer a", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN RSA ", "PuTTY-User-Key-File-2", "xoxb-", "xoxe.", "xapp-", "hooks.slack.com/services/", "sk_live_", "AIza", "ya29.",
    "ghp_", "github_pat_", "AKIA", "A3TA", "aws_key=", "aws_secret_access_key => ", "?token=", "&", "://", "://u:", "://a:@",
    "1//0", "GOCSPX-", "whsec_", "\\n", "%3D", " ", "a", "A", "1", "-", "_", ".", "/", "=", "\n",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4))
def test_no_text_takes_longer_than_its_length_allows(pieces):
    """40,000 characters in 1 s of this thread's own time: they take a hundredth of that, and quadratic ones a hundredfold."""
    text = ("".join(pieces) * 40_000)[:40_000]
    start = time.thread_time()
    Redactor("patterns").clean(text)
    assert time.thread_time() - start < 1


def test_every_hint_is_in_what_is_found():
    """A pattern whose hint is wrong would never be tried."""
    for detector in DETECTORS:
        for text, _ in SECRETS:
            if detector.replaced(text) != text and detector.hints:
                assert any(hint in text for hint in detector.hints), (detector.name, text)


def test_lines_without_a_secret_are_remembered_up_to_a_bound_and_secrets_never():
    redactor = Redactor("patterns")
    for n in range(3000):
        redactor.clean(f"line {n}")
        redactor.clean(f"bob{n}@example.org")
    assert 0 < len(redactor._clean) <= 1024
    assert not [text for text in redactor._clean if "@" in text]


def test_the_line_of_a_typed_log_shows_no_secret_of_its_fields(monkeypatch):
    """Its str prints all fields; in `message`, their keys are obeyed. One without a secret stays a line."""
    monkeypatch.setattr(types, "known", {})

    @types.logtype(table="sign_in")
    class SignIn:
        who: str
        password: str | None = None
        more: dict | None = None

    def message(**values):
        record, options = make_record(SignIn(who="bob", **values)), {"columns": {"m": "message", "w": "extra.who"}}
        return stored(record, make_intake(table="t", schema="public", **options))["m"]

    assert message() == "sign_in who=bob"
    assert message(more={"n": 1}) == "sign_in who=bob more={'n': 1}"
    assert message(password="hunter2").startswith('sign_in {"who": "bob", "password": "[redacted]"')
    assert "hunter2" not in message(more={"token": "hunter2"})


# --- pseudonyms -------------------------------------------------------------------------------------------------------

SALT = "of-the-tests-0123456789"
PSEUDONYMS = {"pseudonyms": {"keys": ["user_email", "user_id"], "salt_env": "LOG_SALT"}}


@pytest.fixture
def salt(monkeypatch):
    monkeypatch.setenv("LOG_SALT", SALT)


def test_a_pseudonym_is_the_same_wherever_the_value_is(salt):
    """Extra or bound, in attributes or in a column of its own, as text or as a number; another value has another."""
    context.bind(user_id=7)
    row = stored(make_record("x", user_email="bob@example.org", more={"User-Email": "bob@example.org", "user_id": "7"}),
                 redact={**PSEUDONYMS, "patterns": ["all"]})  # fmt: skip
    more = row["attributes"]["more"]
    digest = hmac.digest(SALT.encode(), b"bob@example.org", "sha256").hex()
    assert row["attributes"]["user_email"] == more["User-Email"] == f"pseudonym:{digest[:32]}"
    assert row["user_id"] == more["user_id"] != more["User-Email"]
    assert "bob" not in str(row)
    assert {"user_id", "user_email", "more.user_id"} <= set(marks_of(row)["redacted"])


def test_a_pseudonym_needs_its_salt(salt, monkeypatch):
    one = Redactor(PSEUDONYMS).instead("user_id", "bob", lambda: "")
    monkeypatch.setenv("LOG_SALT", SALT + "x")
    redactor = Redactor(PSEUDONYMS)
    assert redactor.instead("user_id", "bob", lambda: "") != one
    assert redactor.instead("user_id", None, lambda: "null") == "[redacted]"
    shown = repr(redactor) + repr(make_intake(redact=PSEUDONYMS)._settings)
    assert SALT not in shown + pickle.dumps(redactor).decode("latin-1")
    assert pickle.loads(pickle.dumps(redactor)).instead("user_id", 1, str) == redactor.instead("user_id", 1, str)


def test_a_key_of_an_id_is_obeyed_in_its_column_as_well():
    """On the quick way, too: it knows no keys of columns, and is closed."""
    assert set(capture.ID_COLUMNS) == COLUMN_KEYS
    context.bind(user_id="bob")
    row = stored(make_record("x", trace_id="t"), redact={"keys": ["user_id", "trace-id"]})
    assert (row["user_id"], row["trace_id"], row["attributes"]["trace_id"]) == ("[redacted]",) * 3


def test_columns_of_ones_own_table_get_the_same(salt):
    columns = {
        "a": "extra.user_email",
        "b": "extra.who.user_email",
        "c": "context.user_id",
        "d": "user_id",
        "e": "message",
    }
    context.bind(user_id=7)
    row = stored(make_record("x", user_email="bob", who={"user_email": "bob"}), make_intake(
        redact=PSEUDONYMS, table="t", schema="public", columns=columns))  # fmt: skip
    assert row["a"] == row["b"] == Redactor(PSEUDONYMS).instead("user_email", "bob", str)
    assert row["c"] == row["d"] == Redactor(PSEUDONYMS).instead("user_id", 7, str)


# --- encryption -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    key = X25519PrivateKey.generate()
    (tmp_path / "private.pem").write_bytes(
        key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    )  # fmt: skip
    (tmp_path / "public.pem").write_bytes(
        key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    )  # fmt: skip
    return str(tmp_path / "private.pem"), str(tmp_path / "public.pem")


@pytest.fixture(params=["x25519", "fernet"])
def keyed(request, pair, tmp_path, monkeypatch):
    """(the file that opens, what `encrypt` is told)."""
    if request.param == "x25519":
        return pair[0], {"public_key": pair[1]}
    from cryptography.fernet import Fernet

    key = Fernet.generate_key().decode()
    (tmp_path / "fernet.key").write_text(key + "\n")
    monkeypatch.setenv("LOG_KEY", key)
    return str(tmp_path / "fernet.key"), {"fernet_env": "LOG_KEY"}


def opened(key, text):
    return crypto.Keys([key]).value(crypto.SEALED.fullmatch(text))


VALUES = ["Zoë, 12 Elm St", "", 17, 1.5, True, ["a", {"b": None}], "x" * 5000, "\ud800 \0", "bob@example.org"]


def test_what_was_encrypted_comes_back(keyed):
    key, option = keyed
    redact = {"keys": ["pin"], "patterns": ["all"], "encrypt": {"keys": ["address", "user_id"], **option}}
    intake = make_intake(redact=redact)
    for value in VALUES:
        row = stored(make_record("x", address=value, user_id="bob"), intake)
        expected = "\\ud800 \ufffd" if value == "\ud800 \0" else value
        assert opened(key, row["attributes"]["address"]) == expected
        assert opened(key, row["user_id"]) == opened(key, row["attributes"]["user_id"]) == "bob"
        assert "address" in marks_of(row)["redacted"]
    texts = {stored(make_record("x", address="same"), intake)["attributes"]["address"] for _ in range(5)}
    assert len(texts) == 5


def test_encryption_comes_last(keyed, salt):
    """What is to be left out is not in what is encrypted, and pseudonyms in it are such."""
    key, option = keyed
    redact = {**PSEUDONYMS, "patterns": ["card"], "encrypt": {"keys": ["body"], **option}}
    body = {"password": "x", "user_email": "bob", "text": "card 4111111111111111", "n": 1}
    found = opened(key, stored(make_record("x", body=body), redact=redact)["attributes"]["body"])
    assert found == {
        "password": "[redacted]", "text": "card [redacted]", "n": 1,
        "user_email": Redactor(PSEUDONYMS).instead("user_email", "bob", str),
    }  # fmt: skip


def test_a_long_value_is_cut_before_it_is_encrypted(keyed):
    """Its text is never cut: half of it would be worth nothing. A frame over its limit is made anew, with shorter ones."""
    key, option = keyed
    redact = {"encrypt": {"keys": ["body"], **option}}
    row = stored(make_record("x", body="y" * 9000), redact=redact, max_message_bytes=1024)
    assert "bytes cut" in opened(key, row["attributes"]["body"])
    row = stored(
        make_record("x", body=["y" * 60_000] * 9), redact=redact, max_message_bytes=65_536, max_frame_bytes=65_536
    )
    assert len(opened(key, row["attributes"]["body"])) > 1


def test_a_value_that_cannot_be_encrypted_is_not_stored(pair, monkeypatch):
    redactor = Redactor({"encrypt": {"keys": ["body"], "public_key": pair[1]}})

    def fails():
        raise RuntimeError("hunter2")

    assert redactor.instead("body", "x", fails) == "[redacted]"


def test_the_key_that_is_agreed_on_is_renewed(pair, monkeypatch):
    """In a forked child, which would count the same numbers as its parent; and after so many values."""
    monkeypatch.setattr(crypto, "_VALUES_A_KEY", 3)
    seal = crypto.sealer(pair[1], None)
    halves = []
    for n in range(8):
        if n == 7:
            monkeypatch.setattr(crypto.os, "getpid", lambda: -1)
        halves.append(seal(b"1").split(":")[3][:40])
    assert [len(set(halves[:3])), len(set(halves[3:6])), len(set(halves))] == [1, 1, 4]


def decrypt(capsys, monkeypatch, lines, *keys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    status = cli.main(["decrypt", *[word for key in keys for word in ("--key", key)]])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_logsluice_decrypt(keyed, capsys, monkeypatch):
    """JSON stays JSON; in another line a value becomes its text; what is none passes by."""
    key, option = keyed
    redactor = Redactor({"encrypt": {"keys": ["body"], **option}})
    sealed = [
        redactor.instead("body", value, lambda value=value: json.dumps(value)) for value in ({"a": [1]}, "x\ny", "Zoë")
    ]
    lines = (
        json.dumps({"m": 1, "body": sealed[0], "in": [f"got {sealed[2]}."]})
        + f"\n17\t{sealed[1]}\t{sealed[0]}\nplain\n"
    )
    status, out, err = decrypt(capsys, monkeypatch, lines, key)
    assert (status, err) == (0, "")
    assert out == '{"m": 1, "body": {"a": [1]}, "in": ["got Zoë."]}\n17\tx\\ny\t{"a": [1]}\nplain\n'


def test_logsluice_decrypt_says_what_it_could_not_open(keyed, pair, tmp_path, capsys, monkeypatch):
    key, option = keyed
    sealed = Redactor({"encrypt": {"keys": ["body"], **option}}).instead("body", "x", lambda: '"x"')
    damaged = sealed[:-12] + ("A" if sealed[-12] != "A" else "B") + sealed[-11:]
    status, out, err = decrypt(capsys, monkeypatch, f"{damaged}\n{sealed}\n{sealed[:60]}\n", key)
    assert (status, out) == (1, f"{damaged}\nx\n{sealed[:60]}\n")
    assert "2 not decrypted" in err
    assert "damaged" in err
    other = str(tmp_path / "other.key")
    (tmp_path / "other.key").write_text("A" * 43 + "=")
    status, out, err = decrypt(capsys, monkeypatch, f"{sealed}\n", other)
    assert (status, out) == (1, f"{sealed}\n")
    assert f"encrypted for key {sealed.split(':')[2]}, and given is" in err
    assert decrypt(capsys, monkeypatch, f"{sealed}\n", other, key)[:2] == (0, "x\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "cannot read"), ("nonsense", "neither"), ("-----BEGIN PUBLIC KEY-----", "public key"), ("-----BEGIN PRIVATE KEY-----\nx", "no private key")],
)  # fmt: skip
def test_a_file_that_is_no_key(tmp_path, text, says):
    file = tmp_path / "key"
    if text is not None:
        file.write_text(text)
    with pytest.raises(LogsluiceError, match=says):
        crypto.Keys([str(file)])


# --- the option -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"patterns": ["emial"]}, "did you mean 'email'"),
        ({"pseudonyms": {"keys": ["a"], "salt": "of-the-tests-0123456789"}}, "not \\['salt'\\]"),
        ({"pseudonyms": {"keys": ["a"]}}, "salt_env is missing"),
        ({"pseudonyms": {"keys": ["a"], "salt_env": "NOT_SET"}}, "'NOT_SET' is not set"),
        ({"pseudonyms": {"keys": ["a"], "salt_env": "SHORT"}}, "holds 5 characters"),
        ({"pseudonyms": {"keys": [], "salt_env": "LOG_SALT"}}, "keys is missing"),
        ({"pseudonyms": "of-the-tests-0123456789"}, "must be a mapping"),
        ({"encrypt": {"keys": ["a"]}}, "one of them"),
        ({"encrypt": {"keys": ["a"], "public_key": "nowhere.pem"}}, "cannot read"),
        ({"encrypt": {"keys": ["a"], "public_key": "-----BEGIN PRIVATE KEY-----"}}, "holds a private key"),
        ({"encrypt": {"keys": ["a"], "public_key": "-----BEGIN PUBLIC KEY-----"}}, "openssl genpkey"),
        ({"encrypt": {"keys": ["a"], "fernet_env": "LOG_SALT"}}, "holds no Fernet key"),
        ({"keys": ["a-b"], "pseudonyms": {"keys": ["A_B"], "salt_env": "LOG_SALT"}}, "in two lists"),
    ],
)
def test_a_wrong_option_says_what_to_write_and_shows_no_secret(option, says, salt, monkeypatch):
    monkeypatch.setenv("SHORT", "12345")
    with pytest.raises(ConfigError, match=says) as caught:
        Redactor(option)
    assert SALT not in str(caught.value)


def test_without_cryptography_it_says_what_to_install(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigError, match=r"logsluice\[crypto\]"):
        Redactor({"encrypt": {"keys": ["a"], "public_key": pair[1]}})
