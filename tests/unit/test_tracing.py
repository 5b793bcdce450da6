"""tracing.py: what is a span's parent, what is current when, what its end leaves behind. Rows: test_traces.py."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import multiprocessing
import pickle
import random
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from logsluice import active_traces, context, extract, inject, span, start_span, trace, tracing
from logsluice.tracing import use
from support.records import make_record, stored

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-00", "tracestate": "congo=t61"}


@pytest.fixture(autouse=True)
def _nothing_current():
    gc.collect()
    context.clear()
    yield
    assert context.current() is None
    assert tracing.current() is None
    assert active_traces() == []


@pytest.fixture
def ended(monkeypatch):
    """What ended, as (name, status, attributes)."""
    found = []
    monkeypatch.setattr(tracing, "_store", lambda one, _ended, status: found.append((one.name, status, one.attributes)))
    return found


def ids():
    """What a record that is logged here has."""
    row = stored(make_record())
    return row["trace_id"], row["span_id"]


def test_records_have_the_ids_of_the_span_they_are_in():
    with trace("checkout", customer=7) as t:
        assert ids() == (t.trace_id, t.span_id)
        with span("charge") as s:
            assert (s.trace_id, s.parent_id) == (t.trace_id, t.span_id)
            assert ids() == (t.trace_id, s.span_id)
        assert ids() == (t.trace_id, t.span_id)
    assert ids() == (None, None)
    assert (t.parent_id, t.attributes, len(t.trace_id), len(t.span_id)) == (None, {"customer": 7}, 32, 16)


def test_what_is_bound_inside_stays_and_what_was_bound_is_put_back():
    with context.bound(trace_id="mine", tenant="north"):
        with span("a"):
            context.bind(user_id=7)
        assert context.current() == {"trace_id": "mine", "tenant": "north", "user_id": 7}


def test_bound_ids_of_w3c_are_a_parent_and_others_are_none():
    with context.bound(trace_id=TRACE, span_id=SPAN), span("a") as a:
        assert (a.trace_id, a.parent_id) == (TRACE, SPAN)
    with context.bound(trace_id=TRACE), span("b") as b:
        assert (b.trace_id, b.parent_id) == (TRACE, None)
    with context.bound(trace_id="request-7", span_id=SPAN), span("c") as c:
        assert c.trace_id != "request-7"
        assert c.parent_id is None


def test_a_trace_within_another_is_part_of_it_unless_nothing_is_current():
    with trace("outer") as outer:
        with trace("inner") as inner:
            assert inner.parent_id == outer.span_id
        with use(None), trace("own") as own:
            assert own.parent_id is None
            assert own.trace_id != outer.trace_id
        with use(None):
            assert ids() == (None, None)


def test_a_callers_headers_are_the_parent_and_go_on(ended):
    with trace("request", parent=extract(HEADERS)) as t:
        assert (t.trace_id, t.parent_id) == (TRACE, SPAN)
        onward = {}
        inject(onward)
        assert onward == {"traceparent": f"00-{TRACE}-{t.span_id}-00", "tracestate": "congo=t61"}
    with trace("request", parent=extract({"traceparent": "nonsense"})) as t:
        assert t.parent_id is None


def test_by_hand_a_span_ends_once_in_whatever_thread(ended):
    s = start_span("job", queue="mail")
    assert ids() == (None, None), "not current"
    with use(s) as same:
        assert same is s
        assert ids() == (s.trace_id, s.span_id)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(s.end("late"))) for _ in range(4)]
    [one.start() for one in threads]
    [one.join() for one in threads]
    assert sorted(answers) == [False, False, False, True]
    assert ended == [("job", "error", {"queue": "mail", "exception.message": "late"})]


def test_the_parent_of_one_begun_by_hand():
    with trace("t") as t:
        child = start_span("child")
        assert start_span("other", parent=child).parent_id == child.span_id
        assert start_span("remote", parent=extract(HEADERS)).trace_id == TRACE
        assert child.parent_id == t.span_id
        child.end()


@pytest.mark.parametrize(("error", "status"), [
    (ValueError("no"), "error"), (KeyboardInterrupt(), "error"), (asyncio.CancelledError(), "error"),
    (SystemExit(2), "error"), (SystemExit(0), "ok"), (SystemExit(), "ok"), (GeneratorExit(), "ok"),
])  # fmt: skip
def test_an_exception_is_the_spans_error(ended, error, status):
    with pytest.raises(type(error)), trace("t"):
        raise error
    ((_, found, attributes),) = ended
    assert found == status
    if status == "error":
        assert attributes["exception.type"].endswith(type(error).__name__)
        assert attributes["exception.message"] == str(error)


def test_an_exception_that_cannot_be_printed_is_one_all_the_same(ended):
    class Odd(Exception):
        def __str__(self):
            raise ValueError

    start_span("s").end(Odd())
    assert ended[0][2]["exception.message"] == "<unprintable Odd: ValueError>"


def test_a_name_is_asked_for():
    with pytest.raises(TypeError, match="a span needs a name, got function"), span(lambda: None):
        pass


def test_every_kind_of_function_may_be_decorated(ended):
    @trace("plain", kind=1)
    def plain():
        return ids()

    @trace("coroutine")
    async def coroutine():
        await asyncio.sleep(0)
        return ids()

    async def both():
        return await asyncio.gather(coroutine(), coroutine())

    one, two = plain(), plain()
    three, four = asyncio.run(both())
    assert len({one, two, three, four, (None, None)}) == 5, "each call is a trace of its own"
    assert [name for name, _, _ in ended] == ["plain", "plain", "coroutine", "coroutine"]
    assert plain.__name__ == "plain"


def test_async_with():
    async def main():
        async with trace("t") as t, span("s") as s, use(t), context.bound(a=1):
            assert ids() == (t.trace_id, t.span_id)
        return t, s

    t, s = asyncio.run(main())
    assert s.parent_id == t.span_id


def test_a_decorated_generator_is_current_only_while_its_body_runs(ended):
    @span("numbers")
    def numbers():
        context.bind(mine=1)
        got = []
        try:
            for n in range(3):
                try:
                    got.append((yield n, ids()))
                except KeyError:
                    got.append("thrown")
        finally:
            assert context.current()["mine"] == 1
        return got

    running = numbers()
    assert active_traces() == [], "it has not begun"
    with trace("user") as t:
        (_, inside) = next(running)
        assert ids() == (t.trace_id, t.span_id)
        assert inside == running.throw(KeyError)[1] == running.send("x")[1]
        assert inside[0] == t.trace_id, "it began here"
        assert "mine" not in context.current()
        with pytest.raises(StopIteration) as end:
            next(running)
    assert end.value.value == ["thrown", "x", None]
    assert [name for name, _, _ in ended] == ["numbers", "user"]


def test_a_generator_that_is_left_ends_its_span(ended):
    @span("left")
    def numbers():
        yield from itertools.count()

    @span("left too")
    async def slow():
        for n in itertools.count():
            yield n
            await asyncio.sleep(0)

    async def main():
        running = slow()
        await running.__anext__()
        await running.asend(None)
        with pytest.raises(KeyError):
            await running.athrow(KeyError)
        async for _ in slow():
            break  # the event loop closes it, in a context of its own
        await asyncio.sleep(0)

    running = numbers()
    next(running)
    running.close()
    list(zip(numbers(), range(2), strict=False))
    asyncio.run(main())
    gc.collect()
    assert [(name, status) for name, status, _ in ended] == [
        ("left", "ok"), ("left", "ok"), ("left too", "error"), ("left too", "ok"),
    ]  # fmt: skip


def test_blocks_in_generators_that_are_left_in_any_order_leave_nothing_current():
    """As contextvars' tokens alone would: they put back a span that has ended."""

    def inside(name):
        with span(name):
            yield

    first = inside("first")
    next(first)
    with span("user") as user:
        next(first, None)
        assert ids() == (user.trace_id, user.span_id)
    assert ids() == (None, None)


def test_a_block_left_in_another_context_does_no_harm():
    """A web framework runs the two halves of a dependency with `yield` in two threads."""

    def dependency():
        with span("dependency"), context.bound(a=1):
            yield

    running = dependency()
    contextvars.copy_context().run(next, running)
    with span("user") as user:
        contextvars.copy_context().run(next, running, None)
        assert ids() == (user.trace_id, user.span_id)


def test_a_task_keeps_the_span_it_was_made_in():
    async def child():
        await asyncio.sleep(0)
        with span("later") as s:
            pass
        return s, ids()

    async def main():
        with trace("t") as t:
            task = asyncio.create_task(child())
        return t, await task

    t, (s, after) = asyncio.run(main())
    assert s.parent_id == t.span_id
    assert after == (t.trace_id, t.span_id)


def test_threads_and_pools_get_it_carried():
    with trace("t") as t:
        with ThreadPoolExecutor(2) as pool:
            assert pool.submit(ids).result() == (None, None)
            assert context.carry(context.carry(pool)) is pool
            assert pool.submit(ids).result() == (t.trace_id, t.span_id)
            assert set(pool.map(lambda _: start_span("s").parent_id, range(4))) == {t.span_id}
        seen = []
        thread = threading.Thread(target=context.carried(lambda: seen.append(ids())))
        thread.start()
        thread.join()
        assert seen == [(t.trace_id, t.span_id)]


def test_other_processes_get_the_bound_ids():
    with context.carry(ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))) as pool:
        with trace("t") as t:
            assert pool.submit(tracing.current).result()[:2] == (t.trace_id, t.span_id)
        assert pool.submit(tracing.current).result() is None


def test_a_pools_process_that_was_forked_inside_a_trace_forgets_it():
    with trace("t"):
        assert context._with_values({}, tracing.current) is None
        assert context._with_values({"trace_id": TRACE, "span_id": SPAN}, tracing.current)[:2] == (TRACE, SPAN)


FORKS = """
import os
from logsluice import active_traces, span, start_span, trace, tracing
ended = []
tracing._store = lambda one, _ended, status: ended.append(one.name)
with trace("t") as t:
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with span("child") as s:
            told = (t.end(), s.parent_id == t.span_id, s.span_id, len(active_traces()))
        os.write(writer, repr((*told, ended)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    told = eval(os.read(reader, 999))
    print(told[:2], told[2] == start_span("mine").span_id, told[3:], len(active_traces()))
print(ended)
"""


def test_a_forked_child_neither_ends_nor_lists_what_its_parent_began():
    """And it does not go on with the same random numbers."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(False, True) False (1, ['child']) 1", "['t']"]


def test_ids_are_not_those_of_a_program_that_seeds_its_random_numbers():
    random.seed(0)
    one = start_span("s").trace_id
    random.seed(0)
    assert start_span("s").trace_id != one


def test_active_traces_are_listed_oldest_first_with_their_open_spans():
    with trace("t") as t:
        job = start_span("job")
        with use(None):
            other = start_span("other")
        first, second = active_traces()
        assert (first.trace_id, first.name, first.spans) == (t.trace_id, "t", (t, job))
        assert (second.name, second.spans) == ("other", (other,))
        assert first.age >= second.age >= 0
        job.end()
        other.end()
        assert [one.spans for one in active_traces()] == [(t,)]


def test_a_span_that_is_never_ended_is_forgotten_with_its_last_reference():
    for _ in range(1000):
        start_span("lost")
    gc.collect()
    assert active_traces() == []


def test_a_chain_of_tasks_that_each_begin_the_next_keeps_nothing():
    """The first span would otherwise live as long as the program."""
    import weakref

    async def link(n):
        with span("link") as s:
            begun.append(weakref.ref(s))
            if not n:  # here, as long as a task of the chain runs: at its end all are gone in any case
                gc.collect()
                return sum(one() is not None for one in begun)
            return asyncio.create_task(link(n - 1))

    async def main():
        found = asyncio.create_task(link(20))
        while isinstance(found, asyncio.Task):
            found = await found
        return found

    begun = []
    assert asyncio.run(main()) <= 2, "the last one, and what it was begun in"


def test_a_spans_context_may_be_sent_to_another_process():
    with trace("t") as t:
        assert pickle.loads(pickle.dumps(t.context)) == t.context
        assert start_span("s", parent=t.context).parent_id == t.span_id


def test_opentelemetrys_current_span_is_the_parent():
    from opentelemetry import trace as otel

    theirs = otel.NonRecordingSpan(otel.SpanContext(int(TRACE, 16), int(SPAN, 16), True, otel.TraceFlags(1)))
    with otel.use_span(theirs):
        assert start_span("s").parent_id == SPAN
        headers = {}
        inject(headers)
        assert headers["traceparent"] == f"00-{TRACE}-{SPAN}-01"
        with trace("ours") as ours, span("inner") as inner:
            assert (ours.trace_id, ours.parent_id, inner.parent_id) == (TRACE, SPAN, ours.span_id)
            assert ids() == (TRACE, inner.span_id)
        with trace("ours, from a header", parent=extract({"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})) as t:
            assert t.trace_id == "1" * 32, "who names a parent means it"


def test_opentelemetrys_span_inside_of_ours_is_the_parent_of_what_is_inside_of_it():
    from opentelemetry import trace as otel

    theirs = otel.NonRecordingSpan(otel.SpanContext(int(TRACE, 16), int(SPAN, 16), True, otel.TraceFlags(1)))
    with trace("ours") as ours:
        with otel.use_span(theirs), span("inner") as inner:
            assert (inner.trace_id, inner.parent_id) == (TRACE, SPAN)
        assert start_span("s").parent_id == ours.span_id


def test_an_opentelemetry_that_raises_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", object())
    with trace("t") as t:
        assert t.parent_id is None


def test_a_span_that_cannot_be_stored_raises_nothing(monkeypatch):
    def deliver(*_args, **_kwargs):
        raise OSError

    monkeypatch.setattr(tracing, "deliver", deliver)
    with trace("t"):
        pass
