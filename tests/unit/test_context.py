"""context.py: values bound to a thread or task, stored with every record logged there."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading

import pytest

from logsluice import context
from support.records import make_record, stored


@pytest.fixture(autouse=True)
def _nothing_bound():
    context.clear()
    yield
    context.clear()


def test_nothing_is_bound_at_first():
    """And asking costs no dict."""
    assert context.current() is None


def test_bound_ids_fill_columns_and_the_rest_attributes():
    """`user_id` is a column of that name, `tenant` is not."""
    context.bind(user_id="bob", organization_id=5, correlation_id="c", trace_id="t", span_id="s", tenant="north")
    row = stored(make_record())
    assert [row[name] for name in ("user_id", "organization_id", "correlation_id", "trace_id", "span_id")] == [
        "bob",
        "5",
        "c",
        "t",
        "s",
    ]
    assert row["attributes"] == {"tenant": "north"}


def test_binding_again_adds_and_replaces():
    """As a dict's update."""
    context.bind(a=1, b=2)
    context.bind(b=3)
    assert context.current() == {"a": 1, "b": 3}


def test_unbinding_names_that_are_not_bound_is_no_error():
    """And the last one leaves nothing."""
    context.bind(a=1, b=2)
    context.unbind("a", "never")
    assert context.current() == {"b": 2}
    context.unbind("b")
    assert context.current() is None
    context.unbind("b")


def test_a_with_block_restores_what_was_bound_before():
    """Also when it is left by an exception, and whatever was bound inside."""
    context.bind(a=1)

    def inside():
        with context.bound(a=2, b=3):
            context.bind(c=4)
            assert context.current() == {"a": 2, "b": 3, "c": 4}
            raise ValueError

    with pytest.raises(ValueError):
        inside()
    assert context.current() == {"a": 1}


def test_another_thread_has_none_of_it():
    """As with every context variable."""
    context.bind(a=1)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(context.current()))
    thread.start()
    thread.join()
    assert seen == [None]


def test_a_task_inherits_and_keeps_what_it_saw():
    """What it binds itself stays its own; what its parent binds later does not reach it."""

    async def child():
        before = context.current()
        context.bind(b=2)
        await asyncio.sleep(0)
        return before, context.current()

    async def main():
        context.bind(a=1)
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
        context.bind(a=9)
        return await task, context.current()

    assert asyncio.run(main()) == (({"a": 1}, {"a": 1, "b": 2}), {"a": 9})


def test_a_mapping_that_was_handed_out_never_changes():
    """Every change makes a new one."""
    context.bind(a=1)
    seen = context.current()
    context.bind(a=2)
    contextvars.copy_context().run(context.bind, a=3)
    assert seen == {"a": 1}


def test_an_extra_wins_over_a_bound_value_of_its_name():
    """In columns and in attributes."""
    context.bind(user_id="bound", tenant="bound")
    row = stored(make_record(user_id="extra", tenant="extra"))
    assert (row["user_id"], row["attributes"]) == ("extra", {"user_id": "extra", "tenant": "extra"})


def test_an_extra_of_none_does_not_hide_a_bound_id():
    """None is no id."""
    context.bind(user_id="bound")
    assert stored(make_record(user_id=None))["user_id"] == "bound"


def test_a_bound_value_changed_in_place_is_stored_as_it_is_then():
    """A list that grows: its text is not remembered."""
    from support.records import make_intake

    intake, items = make_intake(), [1]
    context.bind(items=items)
    first = stored(make_record(), intake)
    items.append(2)
    assert (first["attributes"]["items"], stored(make_record(), intake)["attributes"]["items"]) == ([1], [1, 2])


def test_the_same_names_with_other_values_are_told_apart():
    """What is remembered of bound values ends with them: a new mapping at the same address is another."""
    from support.records import make_intake

    intake = make_intake()
    for i in range(1000):
        with context.bound(user_id=f"u{i}", request=i):
            row = stored(make_record(), intake)
            assert (f"u{i}", {"request": i}) == (row["user_id"], row["attributes"])
    assert intake.whole_ways == 0


def test_every_kind_of_function_may_be_decorated():
    """With the values of the call alone, however it ends."""

    @context.bound(a=1)
    def plain(fail=False):
        context.bind(b=2)
        if fail:
            raise ValueError
        return context.current()

    @context.bound(a=1)
    async def coroutine():
        await asyncio.sleep(0)
        return context.current()

    @context.bound(a=1)
    def generator():
        yield context.current()

    @context.bound(a=1)
    async def async_generator():
        yield context.current()

    async def main():
        async with context.bound(z=1):
            assert context.current() == {"z": 1}
        return await coroutine(), [one async for one in async_generator()], context.current()

    assert plain() == {"a": 1, "b": 2}
    with pytest.raises(ValueError):
        plain(fail=True)
    assert asyncio.run(main()) == ({"a": 1}, [{"a": 1}], None)
    running = generator()
    assert next(running) == {"a": 1}
    assert context.current() is None
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(async_generator), "frameworks ask"
    assert inspect.iscoroutinefunction(coroutine)


def test_one_object_may_be_entered_again():
    """And inside of itself."""
    once = context.bound(a=1)
    with once, context.bound(a=2), once:
        assert context.current() == {"a": 1}
    assert context.current() is None


def test_a_block_that_is_left_in_another_context_raises_nothing():
    """A generator that the event loop closes."""

    def body():
        with context.bound(a=1):
            yield

    running = body()
    contextvars.copy_context().run(next, running)
    contextvars.copy_context().run(running.close)
    assert context.current() is None


def test_functions_and_pools_take_along_what_is_bound():
    """Each call what was bound where it was submitted."""
    from concurrent.futures import ThreadPoolExecutor

    with context.carry(ThreadPoolExecutor(1)) as pool:
        with context.bound(a=1):
            first = pool.submit(context.current)
            work = context.carried(context.current)
        assert (first.result(), pool.submit(context.current).result(), work()) == ({"a": 1}, None, {"a": 1})

        async def main():
            with context.bound(b=2):
                return await asyncio.get_running_loop().run_in_executor(pool, context.current)

        assert asyncio.run(main()) == {"b": 2}


def test_a_carried_function_may_run_twice_at_a_time():
    """A context is one thread's at a time: each call has a copy."""
    with context.bound(a=1):
        work = context.carried(lambda again: work(False) if again else context.current())
    assert work(True) == {"a": 1}


def test_a_decorated_generator_that_is_left_ends_with_its_values():
    """Not with those of whoever closes it."""
    seen = []

    @context.bound(a=1)
    def generator():
        try:
            yield
        finally:
            seen.append(context.current())

    @context.bound(a=2)
    async def async_generator():
        try:
            yield
        finally:
            seen.append(context.current())

    async def main():
        running = async_generator()
        await running.__anext__()
        await running.aclose()

    running = generator()
    next(running)
    running.close()
    asyncio.run(main())
    assert seen == [{"a": 1}, {"a": 2}]


def test_structlogs_names_are_the_same_functions():
    """A program that changes over changes an import."""
    context.bind_contextvars(a=1, b=2)
    context.unbind_contextvars("b")
    with context.bound_contextvars(c=3):
        assert context.get_contextvars() == {"a": 1, "c": 3}
    context.clear_contextvars()
    assert context.get_contextvars() == {}
