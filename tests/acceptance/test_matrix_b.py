"""
Fault matrix B, record contents: whatever a record holds is stored, or a repaired form that says so; no row is refused.

Each record carries its own number in `own`; the rows are judged by it. `send` asserts that no row is a dead letter.
"""

from __future__ import annotations

import array
import asyncio
import builtins
import contextlib
import dataclasses
import datetime as dt
import decimal
import gc
import json
import logging
import os
import sys
import threading
import time
import weakref

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from logsluice import context
from support import matrix
from support.processes import until
from support.records import make_record, marks_of, repaired
from support.roundtrip import NOW, Raises, as_stored, generated, same, send, unicode_texts
from support.shop import LIMIT, Shop
from support.situations import stored_ids
from support.written import run

MIB = 2**20


def judge(row, mode, dsn, count, note):
    """Every number from 0 is in the table once."""
    wanted, found = set(map(str, range(count))), stored_ids(dsn, "own")
    assert not found.keys() - wanted
    matrix.row(
        row, mode, lost=wanted - found.keys(), twice=[own for own, times in found.items() if times > 1], note=note
    )


def raised(error):
    """The exc_info of this exception, raised."""
    try:
        raise error
    except BaseException:
        return sys.exc_info()


# --- what PostgreSQL's text cannot hold ---------------------------------------------------------------------------------

# Where a text can stand in a record: (the record with it there, what is stored of it).
POSITIONS = {
    "message": (make_record, lambda row: row["message"]),
    "argument": (lambda text: make_record("%s", (text,)), lambda row: row["message"]),
    "extra value": (lambda text: make_record(v=text), lambda row: row["attributes"]["v"]),
    "extra key": (
        lambda text: make_record(**{text: 1}),
        lambda row: next(iter(row["attributes"].keys() - {"own", "logsluice"})),
    ),
    "logger": (lambda text: make_record(name=text), lambda row: row["logger"]),
    "exception": (lambda text: make_record(exc_info=raised(ValueError(text))), lambda row: row["exc_message"]),
    "thread": (lambda text: make_record(threadName=text), lambda row: row["thread"]),
    "stack": (lambda text: make_record(stack_info=text), lambda row: row["attributes"]["stack_info"]),
}


def everywhere(dsn, options, texts):
    """Send each text in each position, and see it come back repaired and marked; how many records that were."""
    sent = [(where, text) for where in POSITIONS for text in texts]
    stats, rows = send(dsn, options, [POSITIONS[where][0](text) for where, text in sent])
    for number, (where, text) in enumerate(sent):
        assert POSITIONS[where][1](rows[number]) == repaired(text) != text, where
        assert marks_of(rows[number])["sanitized"], where
    assert stats.sanitized == len(sent)
    return len(sent)


def refused(dsn, text, value):
    """The fault is one: sent as it is, it is refused, by psycopg or by the server."""
    with psycopg.connect(dsn) as conn, pytest.raises((psycopg.DataError, UnicodeEncodeError)):
        conn.execute(text, [value])


def test_b_01_nul(dsn, mode, options):
    """A NUL in each place where a record holds text."""
    refused(dsn, "SELECT %s::text", "a\0b")
    count = everywhere(dsn, options, ["a\0b"])
    judge("B-01", mode, dsn, count, f"NUL in {count} places, {count} replaced and marked")


def test_b_02_lone_surrogates(dsn, mode, options):
    """A lone surrogate in each place, as os.fsdecode makes of a file's name."""
    refused(dsn, "SELECT %s::text", "\ud800")
    count = everywhere(dsn, options, ["\ud800", "a\udfffb", os.fsdecode(b"caf\xe9.txt")])
    judge("B-02", mode, dsn, count, f"{count} texts with surrogates, all marked")


# --- numbers ------------------------------------------------------------------------------------------------------------


def floats(count):
    """So many of hypothesis' floats."""
    kept = []

    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )  # fmt: skip
    @given(st.floats())
    def collect(value):
        kept.append(value)

    collect()
    return kept


def test_b_03_floats_that_json_does_not_know(dsn, mode, options):
    """NaN, infinities, -0.0, Decimal('NaN') and hundreds of generated floats as extras."""
    odd = [float("nan"), float("inf"), -float("inf"), -0.0, 5e-324, 1.7976931348623157e308]
    values = odd + floats(300)
    not_json = [value for value in values if value != value or value in {float("inf"), -float("inf")}]
    with psycopg.connect(dsn) as conn, pytest.raises(psycopg.errors.InvalidTextRepresentation):
        conn.execute("SELECT %s::jsonb", [json.dumps({"v": float("nan")})])
    decimals = [decimal.Decimal(text) for text in ("NaN", "sNaN", "-NaN", "Infinity", "-Infinity", "-0", "1e999999")]
    some = [make_record(v=value, deep={"list": [value, 1]}) for value in values]
    some += [make_record(v=value) for value in decimals]
    _, rows = send(dsn, options, some)
    for number, value in enumerate(values):
        attributes = rows[number]["attributes"]
        assert same(as_stored(value), attributes["v"]), value
        assert same(as_stored([value, 1]), attributes["deep"]["list"]), value
    for number, value in enumerate(decimals, len(values)):
        assert rows[number]["attributes"]["v"] == str(value)
    note = f"{len(values)} floats and {len(decimals)} decimals, {len(not_json)} of them no JSON"
    judge("B-03", mode, dsn, len(some), note)


def test_b_04_integers_without_end(dsn, mode, options):
    """Integers over 64 bits and over Python's limit of 4,300 digits, as extra and as argument."""
    huge = 10**5000
    with pytest.raises(ValueError, match="digits"):
        str(huge)
    large = [2**63, -(2**63) - 1, 2**64, 10**400]
    some = [make_record("n", v=value) for value in [*large, huge, -huge]]
    some += [make_record(form, (value,)) for form in ("%d", "%s", "%r") for value in (2**64, huge)]
    _, rows = send(dsn, options, some)
    for number, value in enumerate(large):
        assert rows[number]["attributes"]["v"] == value
    for number in (4, 5):
        assert rows[number]["attributes"]["v"] == f"<int of {huge.bit_length()} bits>"
        assert marks_of(rows[number])["sanitized"] == ["v"]
    for number in range(6, 12, 2):
        assert rows[number]["message"] == str(2**64)
        assert "ValueError" in marks_of(rows[number + 1])["format_error"]
    judge("B-04", mode, dsn, len(some), "12 integers of up to 5,001 digits")


# --- shapes -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: int
    y: object


class LikeNumpy:
    """What trips over numpy's arrays: no truth value, `==` gives no bool, and a size that is not 0 or 1."""

    def __bool__(self):
        raise ValueError("The truth value of an array with more than one element is ambiguous")

    def __eq__(self, other):
        return [True, False]

    __hash__ = None

    def __len__(self):
        return 2

    def __repr__(self):
        return "array([1, 2])"


def deep(depth, make):
    value = "bottom"
    for _ in range(depth):
        value = make(value)
    return value


def test_b_05_depth_cycles_and_keys_of_any_kind(dsn, mode, options):
    """Depth 100,000, cycles, keys of bytes and tuples, sets, dataclasses, arrays."""
    lists, dicts = deep(100_000, lambda v: [v]), deep(100_000, lambda v: {"k": v})
    with pytest.raises(RecursionError):
        json.dumps(lists)
    cycle = {"name": "cycle"}
    cycle["me"] = [cycle]
    ring = []
    ring.append(ring)
    some = [
        make_record(v=lists),
        make_record(v=dicts),
        make_record(v=cycle),
        make_record(v=ring),
        make_record(v={b"bytes": 1, (1, 2): 2, None: 3, True: 4, 1.5: 5, frozenset({7}): 6}),
        make_record(v={3}),
        make_record(v=Point(1, {"z": 2})),
        make_record(v=LikeNumpy()),
        make_record(v=array.array("d", [1.0, 2.0])),
        make_record(v=memoryview(b"abc")),
        make_record(v={1: "int", "1": "text"}),
        make_record("%s", (Point(1, 2),)),
        make_record(LikeNumpy()),
    ]
    _, rows = send(dsn, options, some)
    values = [rows[number]["attributes"].get("v") for number in range(len(some))]
    for number in (0, 1):
        assert "<too deep>" in json.dumps(values[number])
        assert marks_of(rows[number])["cut"]
    for number in (2, 3):
        assert "<cycle>" in json.dumps(values[number])
        assert marks_of(rows[number])["sanitized"]
    assert sorted(values[4].values()) == [1, 2, 3, 4, 5, 6]  # no key is skipped
    assert values[5] == [3]
    assert values[6] == "Point(x=1, y={'z': 2})"
    assert values[7] == "array([1, 2])"
    assert values[8] == "array('d', [1.0, 2.0])"
    assert values[9].startswith("<memory at")
    assert sorted(values[10].values()) == ["int", "text"]
    assert rows[11]["message"] == "Point(x=1, y=2)"
    assert rows[12]["message"] == "array([1, 2])"
    # Python's own clean-up of such a tree recurses as well, in C and with a net; ours must not have left half of one.
    del some, lists, dicts, cycle, ring
    gc.collect()
    judge("B-05", mode, dsn, 13, "13 shapes, RecursionErrors 0")


class Hostile:
    """`what` it does when it is shown."""

    def __init__(self, what):
        self.what = what

    def __str__(self):
        return self.what(self)

    __repr__ = __str__


class Deaf(Exception):
    """Raised by objects that refuse to be shown."""


def refuse(_self):
    raise Deaf


def test_b_06_objects_that_fight_back(dsn, mode, options, capfd):
    """`__str__` and `__repr__` that raise, recurse, log, lie about their type, or return 100 MB."""
    shown = []

    def large(_self):
        shown.append("large")
        return "y" * 100_000_000

    def nest(_self):
        shown.append("logs")
        shop.logger.info("from inside", extra={"own": len(objects) * 2})
        return "it logged"

    objects = {
        "raises": Hostile(refuse),
        "no str": Hostile(lambda _self: 5),
        "exits": Hostile(lambda _self: (_ for _ in ()).throw(KeyError("x"))),
        "recurses": Hostile(lambda self: f"{self}"),
        "large": Hostile(large),
        "logs": Hostile(nest),
    }
    with Shop(dsn, **options) as shop:
        number = 0
        for name, thing in objects.items():
            if name == "logs":
                continue
            shop.logger.info("%s", thing, extra={"own": number})
            shop.logger.info("extra", extra={"own": number + 1, "v": thing})
            number += 2
        shop.logger.info("%s", objects["logs"], extra={"own": number})
        shop.logger.info("extra", extra={"own": number + 1})
        assert shop.flush()
        rows = {own: (text, marks) for own, text, marks in shop.query(
            "SELECT (attributes->>'own')::int, left(message || coalesce(attributes->>'v', ''), 2000000), "
            "attributes->'logsluice' FROM logsluice.logs")}  # fmt: skip
        assert shop.stats.offered == shop.stats.stored == number + 3
        assert shop.stats.dropped == shop.stats.dead == 0
    assert "large" in shown
    assert "logs" in shown
    for own in range(0, 8, 2):  # raises, no str, exits, recurses
        assert "format_error" in rows[own][1], own
        assert "<unprintable Hostile:" in rows[own + 1][0], own
    for own in (8, 9):
        assert len(rows[own][0]) <= 1.1 * MIB
        assert sum(rows[own][1]["cut"].values()) > 98_000_000
    assert rows[10][0] == "it logged"
    assert rows[12][0] == "from inside"
    assert "Deaf" not in capfd.readouterr().err
    judge("B-06", mode, dsn, number + 3, "6 hostile objects as argument and extra, 1 record from inside another")


BAD_FORMATS = [
    ("%d", ("x",)),
    ("%s %s", (1,)),
    ("%s", (1, 2)),
    ("%(a)s", (1,)),
    ("%(a)s", ({"b": 1},)),
    ("%q", (1,)),
    ("100%", (1,)),
    ("%*d", ("x", 1)),
    ("%c", (-1,)),
    ("%.3f", (None,)),
]


def test_b_07_wrong_format_strings(dsn, mode, options, capfd):
    """Ten format strings that do not fit their arguments."""
    for form, args in BAD_FORMATS:
        with pytest.raises((TypeError, ValueError, KeyError, OverflowError)):
            logging.LogRecord("a", 20, "", 1, form, args, None).getMessage()
    _, rows = send(dsn, options, [make_record(form, args) for form, args in BAD_FORMATS])
    for number, (form, args) in enumerate(BAD_FORMATS):
        assert rows[number]["message"] == form
        assert marks_of(rows[number])["format_error"]
        expected = [args[0]] if isinstance(args[0], dict) else list(args)
        assert marks_of(rows[number])["args"] == expected
    assert (
        "Logging error" not in capfd.readouterr().err
    )  # what logging prints in such a case, and then loses the record
    judge("B-07", mode, dsn, len(BAD_FORMATS), "10 wrong formats, template and arguments kept")


def test_b_08_arguments_changed_after_the_call(dsn, mode, options):
    """A dict and a list that the program changes as soon as the call has returned, 10,000 times."""
    count, items, order = 10_000, [], {"id": None}
    with Shop(dsn, linger=0.2, **options) as shop:
        for n in range(count):
            order["id"], items[:] = n, [n, n]
            shop.logger.info("order %s of %s", order, items, extra={"own": n, "order": order, "items": items})
            order["id"] = "changed"
            items.append("changed")
        assert shop.flush()
        rows = shop.query("SELECT message, attributes FROM logsluice.logs")
    stale = [
        attributes
        for message, attributes in rows
        if message != "order {{'id': {0}}} of [{0}, {0}]".format(n := attributes["own"])
        or (attributes["order"], attributes["items"]) != ({"id": n}, [n, n])
    ]
    assert (order["id"], items[-1]) == ("changed", "changed")
    assert not stale
    judge("B-08", mode, dsn, count, f"{count} pairs of arguments changed after the call, stale texts 0")


class Looks(logging.Handler):
    """It writes down what a record holds, by identity: an equal copy in its place would be a change, too."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def handle(self, record):
        self.seen.append(({key: id(value) for key, value in record.__dict__.items()}, list(record.__dict__)))
        return True


def test_b_09_the_record_is_as_it_was_for_the_next_handler(dsn, mode, options):
    """1,000 records of every kind pass a handler before ours, ours, and one after it."""
    some = generated(1000)
    some += [make_record(form, args) for form, args in BAD_FORMATS]
    some += [make_record("%s", (Raises(),)), make_record(created=float("nan")), make_record("a\0b", user_id="x\ud800")]
    before, after = Looks(), Looks()
    with Shop(dsn, **options) as shop:
        shop.logger.handlers = [before, shop.handler, after]
        for number, record in enumerate(some):
            record.own = number
            shop.logger.handle(record)
        assert shop.flush()
        assert shop.stats.stored == len(some)
        assert shop.stats.sanitized > 20  # repaired on the way into the frame, and not in the record
    different = [number for number in range(len(some)) if before.seen[number] != after.seen[number]]
    assert not different
    judge("B-09", mode, dsn, len(some), f"{len(some)} records, differences 0")


# --- exceptions ---------------------------------------------------------------------------------------------------------


class Local:
    """It lives as long as the frame that it is a local variable of."""


def exceptions(kept):
    """(what it is, exc_info, what the traceback must show). `kept`: weak references to locals of all frames."""

    def fail(error, **how):
        local = Local()
        kept.append(weakref.ref(local))
        if "cause" in how:
            raise error from how["cause"]
        raise error

    def caught(error, **how):
        try:
            fail(error, **how)
        except BaseException as caught:
            return caught

    yield "plain", caught(ValueError("one")), ["ValueError: one", "in fail"]
    cause = caught(KeyError("cause"))
    yield "cause", caught(ValueError("two"), cause=cause), ["KeyError: 'cause'", "direct cause", "ValueError: two"]
    try:
        try:
            fail(KeyError("context"))
        except KeyError:
            fail(ValueError("three"))
    except ValueError as error:
        yield "context", error, ["KeyError: 'context'", "During handling", "ValueError: three"]
    yield "suppressed", caught(ValueError("four"), cause=None), ["ValueError: four"]
    yield "exits", caught(SystemExit(7)), ["SystemExit: 7"]
    if group := getattr(builtins, "ExceptionGroup", None):  # from Python 3.11
        inner = [caught(OSError("in a group")), group("inner", [caught(TypeError("deep"))])]
        yield (
            "group",
            caught(group("outer", inner)),
            ["outer (2 sub-exceptions)", "OSError: in a group", "TypeError: deep"],
        )
        noted = caught(ValueError("noted"))
        noted.add_note("a note")
        yield "note", noted, ["ValueError: noted", "a note"]
    yield "hostile", caught(type("Silent", (Exception,), {"__str__": refuse})()), ["Silent"]


def test_b_10_exceptions_of_every_kind_and_no_frame_is_kept(dsn, mode, options):
    """Exceptions with causes, contexts, groups and notes; stacks; exc_info=True with nothing raised."""
    frames, expected, number = [], [], 0
    with Shop(dsn, **options) as shop:
        for _, error, shows in exceptions(frames):
            for given in (error, (type(error), error, error.__traceback__)):
                shop.logger.error("failed", exc_info=given, extra={"own": number})
                expected.append((type(error), shows))
                number += 1
            try:
                raise error
            except BaseException:
                shop.logger.exception("failed", extra={"own": number})
            expected.append((type(error), shows))
            number += 1
            del error, given
        with_exception = number
        shop.logger.error("nothing raised", exc_info=True, extra={"own": number})
        shop.logger.info("where am I", stack_info=True, extra={"own": number + 1})
        assert shop.flush()
        gc.collect()
        assert len(frames) > 5
        alive = [reference for reference in frames if reference() is not None]
        assert not alive
        rows = dict(
            shop.query("SELECT (attributes->>'own')::int, ARRAY[exc_type, exc_message, exc_text] FROM logsluice.logs")
        )
        stack = shop.query("SELECT attributes->>'stack_info' FROM logsluice.logs WHERE message = 'where am I'")
    for own, (kind, shows) in enumerate(expected):
        name, text, trace = rows[own]
        assert name.endswith(kind.__qualname__)
        assert text is not None
        assert all(piece in trace for piece in shows), (shows, trace)
    assert rows[with_exception] == [None, None, None]
    assert "test_b_10" in stack[0][0]
    judge("B-10", mode, dsn, number + 2, f"{with_exception} exceptions, {len(frames)} frames, kept 0")


# --- sizes --------------------------------------------------------------------------------------------------------------

LARGE = """
def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))     # MiB

configure(linger=0.05, **json.loads(os.environ["OPTIONS"]))
log.info("warm")
assert handler().flush(20)
for size in (1, 64, 300):
    text = "x" * (size << 20)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")                # the highest resident size begins anew
    before = status("VmRSS")
    began = time.monotonic()
    log.info(text, extra={"own": (1, 64, 300).index(size)})
    tell(**{f"seconds{size}": time.monotonic() - began})
    assert handler().flush(20)
    tell(**{f"peak{size}": status("VmHWM") - before})
stats = handler().stats()
tell(stored=stats.stored, dead=stats.dead, dropped=stats.dropped)
"""


def test_b_11_messages_of_1_64_and_300_mib(dsn, mode, options, tmp_path):
    """Messages far over the cap of 1 MiB, in a program of their own whose highest memory is read."""
    told = run(dsn, tmp_path, LARGE, OPTIONS=json.dumps(options)).told
    assert (told["stored"], told["dead"], told["dropped"]) == (4, 0, 0)
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "SELECT octet_length(message), left(message, 3), right(message, 3), "
            "(attributes->'logsluice'->'cut'->>'message')::int FROM logsluice.logs "
            "WHERE attributes ? 'own' ORDER BY attributes->'own'"
        ).fetchall()
    assert rows[0] == (MIB, "xxx", "xxx", None)
    for size, (stored, head, tail, left_out) in zip((64, 300), rows[1:], strict=True):
        assert (head, tail) == ("xxx", "xxx")
        assert stored <= MIB
        assert left_out >= (size - 1) * MIB
    peak = max(told[f"peak{size}"] for size in (1, 64, 300))
    judge(
        "B-11",
        mode,
        dsn,
        3,
        f"memory above the message itself at most {peak:.0f} MiB, 300 MiB in {told['seconds300']:.2f} s",
    )
    assert peak <= 3 * 1 + 32  # MiB: three times the cap, and 32 for the rest


# --- time ---------------------------------------------------------------------------------------------------------------


def test_b_13_timestamps_out_of_range(dsn, mode, options):
    """Times that are no number, before 1970, in the year 10,000, or 500 days away."""
    year_10000 = 253_402_300_800
    odd = [1e18, -1e18, float("nan"), float("inf"), -float("inf"), year_10000, -1, 0, None, "soon", 10**400,
           NOW - 500 * 86400, NOW + 100 * 86400]  # fmt: skip
    with pytest.raises((OverflowError, ValueError, OSError)):
        dt.datetime.fromtimestamp(1e18)
    _, rows = send(dsn, options, [make_record(created=created) for created in odd])
    for number, created in enumerate(odd):
        assert abs(rows[number]["ts"].timestamp() - NOW) < 3600, created
        assert "ts_original" in marks_of(rows[number]), created
    judge("B-13", mode, dsn, len(odd), f"{len(odd)} impossible times became now, each kept in the marks")


YEAR = 365 * 86400  # seconds


def test_b_14_the_clock_jumps_by_a_year(dsn, mode, options, monkeypatch):
    """The clock of the machine jumps a year back, forth and ahead, with records waiting."""
    linger, jumps = 0.1, (0, -YEAR, 0, YEAR)
    real, off, began = time.time, [0], [0.0]
    waits, appended_ahead = {jump: [] for jump in jumps}, []
    monkeypatch.setattr(time, "time", lambda: real() + off[0])
    real_ns = time.time_ns  # what logging asks from Python 3.13 on
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + off[0] * 10**9)
    with Shop(dsn, linger=linger, **options) as shop:
        shop.watch()
        shop.log()
        assert shop.flush()
        write = shop.route.sink.write

        def timed(batch, counts):
            if began[0]:
                waits[off[0]].append(time.monotonic() - began[0])
                began[0] = 0.0
            return write(batch, counts)

        shop.route.sink.write = timed
        for jump in jumps * 3:
            assert until(lambda: shop.route.intake.wake_level < 0, LIMIT)  # the listener sleeps
            began[0] = time.monotonic()
            ids = shop.log(5)
            appended_ahead += ids if off[0] > 0 else []
            off[0] = jump  # while they wait
            ids = shop.log(5)
            appended_ahead += ids if off[0] > 0 else []
            assert until(lambda: not shop.route.waits, LIMIT)  # no flush: it would not wait for linger
        off[0] = 0
        assert shop.flush()
        stored, dead = shop.check()
        # The server makes no partitions for a moment that is a year away: such a row is kept as a dead letter.
        assert set(dead) <= set(appended_ahead)
        # In the order of their COMMITs and, within a partition, of their places: numbers only grow.
        rows = shop.query("SELECT tableoid, seq FROM logsluice.logs ORDER BY xmin::text::bigint, ctid")
        years = shop.query("SELECT count(DISTINCT extract(year FROM ts)) FROM logsluice.logs")
    assert years[0][0] >= 2  # the clock did jump
    by_partition = {}
    for partition, seq in rows:
        by_partition.setdefault(partition, []).append(seq)
    assert all(seqs == sorted(seqs) for seqs in by_partition.values())
    medians = {jump: sorted(times)[len(times) // 2] for jump, times in waits.items()}
    still, worst = medians[0], max(medians.values(), key=lambda median: abs(median - medians[0]))
    assert abs(worst - still) <= still  # the matrix says 10 %: ten times that
    note = f"{len(jumps) * 3} jumps, sent after {worst:.3f} s, without a jump {still:.3f} s, linger {linger} s; "
    note += f"{len(dead)} of {len(appended_ahead)} of a year ahead are dead letters"
    lost, twice = set(shop.given) - set(stored) - set(dead), len(stored) - len(set(stored))
    matrix.row("B-14", mode, lost=lost, twice=twice, note=note)


# --- the text of COPY -----------------------------------------------------------------------------------------------------


def test_b_15_every_character_of_unicode(dsn, mode, options):
    """All code points, and what ends or splits a row of COPY text, in messages, extras and names."""
    ends = ["\\.", "\n", "\r\n", "\t", "\\N", "\\", "a\\.\nb", "\\\\.", "\\x00", "\\n\\", "\u2028\u2029\x85\x0b\x0c"]
    texts = unicode_texts() + ends
    some = [make_record(text, name=f"n{text[:100]}", threadName=text[:100], text=text) for text in texts]
    _, rows = send(dsn, {**options, "redact": None}, some)
    wrong = [
        number
        for number, text in enumerate(texts)
        for got in [rows[number]]
        if (got["message"], got["attributes"]["text"]) != (repaired(text), repaired(text))
        or (got["logger"], got["thread"]) != (repaired(f"n{text[:100]}"), repaired(text[:100]))
    ]
    assert wrong == []
    judge("B-15", mode, dsn, len(texts), "1,114,112 code points, 11 ends of rows, all equal")


COLUMNS = (
    "SELECT table_name, column_name, data_type FROM information_schema.columns "
    "WHERE table_schema = 'logsluice' AND table_name IN ('logs', 'stream', 'dead_letter') ORDER BY 1, 2"
)


REFUSED = {*make_record().__dict__, "message", "asctime"}  # names that `extra=` may not have


def test_b_16_extras_named_like_columns_and_extras_without_number(dsn, mode, options):
    """Extras with the names of columns, 10,000 of them, one without a name, one with a name of 5 KB."""
    with psycopg.connect(dsn) as conn:
        before = conn.execute(COLUMNS).fetchall()
        names = [name for table, name, _ in before if table == "logs"]
    clashing = {name: f"mine {name}" for name in names if name not in REFUSED}
    clash = make_record("clash", **{"drop table logs": 1, "logsluice": "mine", "attributes.own": 5})
    clash.__dict__.update(clashing)
    some = [
        clash,
        make_record("many", **{f"key{n:05d}": n for n in range(9_999)}),  # and `own`
        make_record("empty", **{"": "no name"}),
        make_record("long", **{"k" * 5000: 1}),
        make_record("over", own=None, **{f"key{n:05d}": n for n in range(12_000)}),
    ]
    _, rows = send(dsn, options, some)
    clash = rows[0]
    assert (clash["level"], clash["logger"], clash["message"]) == (20, "shop.orders", "clash")
    assert clash["stream"] != clashing["stream"]
    ids = {"trace_id", "span_id", "correlation_id", "user_id", "organization_id"}
    for name, value in clashing.items():
        assert clash["attributes"][name] == value, name
        assert (clash[name] == value) == (name in ids), name
    assert clash["attributes"]["logsluice_"] == "mine"
    assert len(rows[1]["attributes"]) == 10_000
    assert rows[2]["attributes"][""] == "no name"
    (long,) = [key for key in rows[3]["attributes"] if key.startswith("kk")]
    assert len(long) <= 1024
    assert marks_of(rows[3])["cut"]
    assert len(rows[4]["attributes"]) <= 10_002
    assert marks_of(rows[4])["cut"]["attributes"] == 2001  # 12,000 and `own`, of which 10,000 are kept
    with psycopg.connect(dsn) as conn:
        assert conn.execute(COLUMNS).fetchall() == before
    judge("B-16", mode, dsn, len(some), f"{len(clashing)} names of columns, 12,000 extras, columns unchanged")


def test_b_17_levels_of_any_number_and_name(dsn, mode, options):
    """Levels 7, 10**9 and -5, a level with a name of its own, and one that was renamed."""
    name = logging.getLevelName(logging.INFO)
    logging.addLevelName(25, "NOTICE")
    try:
        with Shop(dsn, level=-(10**10), **options) as shop:
            for own, level in enumerate([7, 10**9, -5, 25, 10**400, -(10**9)]):
                shop.logger.handle(make_record(level=level, own=own))  # `log` leaves out all levels up to 0
            logging.addLevelName(logging.INFO, "PROSE")
            shop.logger.info("a level", extra={"own": 6})
            assert shop.flush()
            rows = {
                own: (level, attributes.get("levelname"), attributes.get("logsluice", {}).get("level_original"))
                for own, level, attributes in shop.query(
                    "SELECT (attributes->>'own')::int, level, attributes FROM logsluice.logs"
                )
            }
    finally:
        logging.addLevelName(logging.INFO, name)
        logging._levelToName.pop(25)
        logging._nameToLevel.pop("NOTICE")
        logging._nameToLevel.pop("PROSE", None)
    assert rows[0] == (7, None, None)
    assert rows[1] == (32767, None, 10**9)
    assert rows[2] == (-5, None, None)
    assert rows[3] == (25, "NOTICE", None)
    assert rows[4][0] == 32767
    assert rows[5] == (-32767, None, -(10**9))
    assert rows[6] == (20, "PROSE", None)
    judge("B-17", mode, dsn, 7, "7 levels, number and name kept, 3 clamped and marked")


def test_b_18_bound_values_of_a_thousand_tasks(dsn, mode, options):
    """1,000 asyncio tasks and 8 threads at once, each with a correlation id of its own."""
    tasks, threads, each = 1000, 8, 3

    async def task(shop, number):
        with context.bound(correlation_id=f"task-{number}"):
            for n in range(each):
                shop.logger.info("step", extra={"own": number * each + n, "who": f"task-{number}"})
                await asyncio.sleep(0)

    async def together(shop):
        await asyncio.gather(*(task(shop, number) for number in range(tasks)))

    def thread(shop, number, barrier):
        context.bind(correlation_id=f"thread-{number}")
        barrier.wait(LIMIT)
        for n in range(each):
            shop.logger.info("step", extra={"own": (tasks + number) * each + n, "who": f"thread-{number}"})

    with Shop(dsn, **options) as shop:
        barrier = threading.Barrier(threads)
        running = [threading.Thread(target=thread, args=(shop, number, barrier)) for number in range(threads)]
        for one in running:
            one.start()
        asyncio.run(together(shop))
        for one in running:
            one.join(LIMIT)
        assert shop.flush()
        wrong = shop.query(
            "SELECT attributes->>'who', correlation_id FROM logsluice.logs "
            "WHERE correlation_id IS DISTINCT FROM attributes->>'who'"
        )
        different = shop.query("SELECT count(DISTINCT correlation_id), count(DISTINCT task) FROM logsluice.logs")
    assert wrong == []
    assert different == [(tasks + threads, tasks)]
    with contextlib.suppress(LookupError):
        assert not context.current()
    judge("B-18", mode, dsn, (tasks + threads) * each, f"{tasks} tasks, {threads} threads, wrong ids 0")
