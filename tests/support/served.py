"""ASGI and WSGI by hand: a server that does what a test says, and the rows that were logged."""

from __future__ import annotations

import asyncio
import io
import itertools
import logging

from logsluice import context

_names = itertools.count()


class Rows(logging.Handler):
    """The records that a middleware's logger, of this test alone, was given, and what was bound then."""

    def __init__(self):
        super().__init__()
        self.records, self.bound = [], []
        self.name_of_logger = f"access.{next(_names)}"
        self.logger = logging.getLogger(self.name_of_logger)
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        self.logger.addHandler(self)

    def emit(self, record):
        self.records.append(record)
        self.bound.append(dict(context.get() or {}))

    @property
    def all(self):
        return [record.msg for record in self.records]

    @property
    def one(self):
        (row,) = self.all
        return row

    @property
    def last_level(self):
        return self.records[-1].levelno


def scope(path="/orders/17", method="GET", headers=(), **more):
    return {
        "type": "http", "method": method, "path": path, "client": ("10.1.2.3", 4711), "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers], **more,
    }  # fmt: skip


async def talk(app, given, messages=(), *, refuses=None):
    """Serve one connection; what was sent. Behind `messages` the client is gone."""
    waiting, sent = list(messages), []

    async def receive():
        kind = "http.disconnect" if given["type"] == "http" else "websocket.disconnect"
        return waiting.pop(0) if waiting else {"type": kind}

    async def send(message):
        if refuses is not None and refuses(message):
            raise OSError("the client is gone")
        sent.append(message)

    await app(given, receive, send)
    return sent


def served(app, given=None, messages=({"type": "http.request", "body": b""},), **options):
    return asyncio.run(talk(app, given or scope(), messages, **options))


def start(status=200, headers=(), **more):
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def body(data=b"", more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def answering(*messages):
    """An application that sends these."""

    async def app(_scope, _receive, send):
        for message in messages:
            await send(message)

    return app


def environ(path="/orders/17", method="GET", data=b"", **more):
    return {
        "REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "REMOTE_ADDR": "10.1.2.3",
        "CONTENT_LENGTH": str(len(data)), "wsgi.input": io.BytesIO(data), **more,
    }  # fmt: skip


class Wsgi:
    """What a server does with a WSGI application: the status, the headers, the pieces that it sent."""

    def __init__(self, app, given=None, *, pieces=None):
        self.status = self.headers = None
        self.exc_info = ()
        self.sent = []
        self.answer = app(given or environ(), self.start_response)
        try:
            for piece in itertools.islice(self.answer, pieces):
                self.sent.append(piece)
        finally:
            close = getattr(self.answer, "close", None)
            if close is not None:
                close()

    def start_response(self, status, headers, *exc_info):
        self.status, self.headers, self.exc_info = status, dict(headers), exc_info
        return self.sent.append
