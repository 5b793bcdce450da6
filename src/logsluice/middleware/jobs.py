"""
Decorators that write what becomes of a job: `job` a `JobLog` row for each step, `message_job` a `MessageEvent`.

    @message_job("email", subject=lambda order: f"order {order.id}", recipient_email=lambda order: order.email)
    def confirm(order): ...

    @app.task(bind=True, max_retries=3)
    @job("sync_job")
    def sync(self, slice_uri): ...

Of plain functions, coroutine functions and Celery tasks (below `@app.task`). A field of the row is what was given to
the decorator (a value, or a function of the call's arguments), else the call's argument of that name. The steps:
queued, processing, then sent (`message_job`) or done (`job`), or failed. Exceptions go on unchanged.

`attempts` counts the calls of one `job_id` in this process that failed before; in a Celery task its `retries` say it,
and the task's id is the job's. A try that Celery will repeat is `queued` again, one attempt further, with the error.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import time
import uuid
from collections import OrderedDict
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING, Any, TypeVar

from logsluice.capture import safe_str
from logsluice.checks import refuse_unknown
from logsluice.contrib import JobLog, MessageEvent
from logsluice.errors import ConfigError
from logsluice.middleware.requests import say

if TYPE_CHECKING:
    from collections.abc import Callable

Function = TypeVar("Function", bound="Callable[..., Any]")

MARK = "__logsluice_job__"  # attribute of a decorated function: its Job
_TEXT = 1000  # characters of an error
_REMEMBERED = 4096  # jobs whose failed attempts are counted; beyond, the oldest one is forgotten
_attempts: OrderedDict[str, int] = OrderedDict()  # job_id -> attempts that failed


def message_job(channel: str, *, returns: str | None = None, logger: str | None = None, **fields: Any) -> Any:
    """
    Decorate a function that sends a message by this channel ("email", "whatsapp", your own).

    `fields` are those of `MessageEvent`. `returns`: the field that the function's result is, for example
    "message_id". `logger`: name of the logger; the function's module when None. Raises `ConfigError` for an unknown
    field.
    """
    return _decorator(MessageEvent, "channel", channel, returns, logger, fields)


def job(log_type: str, *, returns: str | None = None, logger: str | None = None, **fields: Any) -> Any:
    """
    Decorate a function that does a job of this kind ("sync_job", "jetstream", "system", your own).

    `fields` are those of `JobLog`; its `metadata` has `status`, `attempts`, and at the end `duration_ms` and `error`
    besides. The rest as `message_job`.
    """
    return _decorator(JobLog, "log_type", log_type, returns, logger, fields)


def _decorator(  # noqa: PLR0917 - called in two places, above
    kind: type, name: str, value: str, returns: str | None, logger: str | None, fields: dict[str, Any]
) -> Any:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a text, got {value!r}: write @message_job('email'), @job('sync_job')")
    known = [one.name for one in fields_of(kind) if one.name not in {"status", "error_message", "level", name}]
    for field in (*fields, *([returns] if returns else [])):
        if field not in known:
            refuse_unknown(field, known)

    def decorate(function: Function) -> Function:
        made = Job(function, kind=kind, fields={name: value, **fields}, returns=returns, logger=logger, known=known)
        return made.wrapped()  # type: ignore[no-any-return]

    return decorate


class Job:
    """What is known of one decorated function."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        kind: type,
        fields: dict[str, Any],
        returns: str | None,
        logger: str | None,
        known: list[str],
    ) -> None:
        self._kind, self._fields, self._returns, self._known = kind, fields, returns, known
        self._function = function
        self._signature = inspect.signature(function)
        self._logger = logging.getLogger(logger or function.__module__)

    def wrapped(self) -> Any:
        """Return the function with its steps written."""
        function = self._function

        def plain(*args: Any, **kwargs: Any) -> Any:
            run = self._begun(args, kwargs)
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                self._failed(run, error)
                raise
            self._done(run, result)
            return result

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            run = self._begun(args, kwargs)
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                self._failed(run, error)
                raise
            self._done(run, result)
            return result

        wrapper = functools.wraps(function)(coroutine if inspect.iscoroutinefunction(function) else plain)
        setattr(wrapper, MARK, self)
        wrapper.queued = self.queued  # type: ignore[attr-defined]
        return wrapper

    def queued(self, *args: Any, **kwargs: Any) -> str:
        """
        Write that a call with these arguments waits, and return its `job_id`: `send.queued(order)`.

        Give the id to the call as its argument `job_id`, or the two cannot be told to be one. Never raises.
        """
        run = self._made(args, kwargs)
        self._write("queued", run)
        return run.id

    def queued_as(self, task_id: str, args: Any, kwargs: Any, retries: int) -> None:
        """Write that a Celery task waits (celery.py). One that is repeated has said so, when its try failed."""
        if not retries:
            self._write("queued", self._made(args, kwargs, task_id))

    def _begun(self, args: Any, kwargs: Any) -> _Run:
        run = self._made(args, kwargs)
        self._write("processing", run)
        return run

    def _done(self, run: _Run, result: Any) -> None:
        _attempts.pop(run.id, None)
        if self._returns:
            run.fields[self._returns] = result
        self._write("sent" if self._kind is MessageEvent else "done", run)

    def _failed(self, run: _Run, error: BaseException) -> None:
        if _will_repeat(error):
            cause = getattr(error, "exc", None)
            run.attempts += 1
            self._write("queued", run, cause if isinstance(cause, BaseException) else error)
            return
        if not run.counted:
            _attempts[run.id] = run.attempts
            while len(_attempts) > _REMEMBERED:
                _attempts.popitem(last=False)
        self._write("failed", run, error)

    def _made(self, args: Any, kwargs: Any, task_id: str | None = None) -> _Run:
        """Find the fields of one call. Never raises: a field that cannot be found is left out, and said once."""
        found: dict[str, Any] = {}
        try:
            task = None if task_id else _task()
            if task_id and list(self._signature.parameters)[:1] == ["self"]:
                args = (None, *args)  # `bind=True`: the task, which its sender need not have
            arguments = self._signature.bind_partial(*args, **kwargs).arguments
            found = {name: value for name, value in arguments.items() if name in self._known and value is not None}
            found.update(
                {name: value(*args, **kwargs) if callable(value) else value for name, value in self._fields.items()}
            )
        except Exception as error:
            say(f"the fields of {self._function.__name__}", error)
            found.update({name: value for name, value in self._fields.items() if not callable(value)})
            task = None
        request = task_id or getattr(task, "id", None)
        given = found.get("job_id")
        identity = str(given if given is not None else request or uuid.uuid4())
        attempts = found.pop("attempts", None) or (getattr(task, "retries", 0) or _attempts.get(identity, 0)) + 1
        return _Run(identity, found, attempts, counted=request is not None)

    def _write(self, status: str, run: _Run, error: BaseException | None = None) -> None:
        try:
            level = logging.INFO if error is None else logging.ERROR if status == "failed" else logging.WARNING
            if self._logger.isEnabledFor(level):
                made = self._message if self._kind is MessageEvent else self._line
                self._logger.log(level, made(status, run, None if error is None else _told(error)))
        except Exception as failure:
            say(f"a row of {self._function.__name__}", failure)

    def _message(self, status: Any, run: _Run, error: str | None) -> MessageEvent:
        fields = {**run.fields, "job_id": run.id}
        if fields.get("message_id") is not None:
            fields["message_id"] = safe_str(fields["message_id"])
        return MessageEvent(status=status, attempts=run.attempts, error_message=error, **fields)

    def _line(self, status: str, run: _Run, error: str | None) -> JobLog:
        metadata = {**(run.fields.get("metadata") or {}), "status": status, "attempts": run.attempts}
        if status != "queued" or error:
            metadata["error"] = error
        if status in {"done", "failed"}:
            metadata["duration_ms"] = round((time.perf_counter() - run.started) * 1000, 3)
        fields = {"message": f"{self._function.__name__} {status}", **run.fields}
        try:
            fields["job_id"] = uuid.UUID(run.id)
        except ValueError:
            fields.pop("job_id", None)
            metadata["job_id"] = run.id  # the column is a uuid
        fields["metadata"] = {key: value for key, value in metadata.items() if value is not None}
        return JobLog(**fields)


class _Run:
    """One call."""

    def __init__(self, identity: str, fields: dict[str, Any], attempts: int, *, counted: bool) -> None:
        self.id = identity
        self.fields = fields
        self.attempts = attempts
        self.counted = counted  # by Celery
        self.started = time.perf_counter()


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {safe_str(error)}"[:_TEXT]


def _task() -> Any:
    """Return the request of the Celery task that runs here, if the program uses Celery."""
    request = getattr(_current_task(), "request", None)
    return request if getattr(request, "id", None) else None


def _current_task() -> Any:
    state: Any = sys.modules.get("celery._state")
    return state.get_current_task() if state is not None else None


def _will_repeat(error: BaseException) -> bool:
    """Whether Celery will run the task again: `self.retry()` was called, or `autoretry_for` names the error."""
    retry: Any = getattr(sys.modules.get("celery.exceptions"), "Retry", None)
    if isinstance(retry, type) and isinstance(error, retry):
        return True
    task = _current_task()
    try:
        most = task.max_retries
        return (
            isinstance(error, tuple(getattr(task, "autoretry_for", ())))
            and not isinstance(error, tuple(getattr(task, "dont_autoretry_for", ())))
            and (most is None or task.request.retries < most)
        )
    except Exception:
        return False  # no task
