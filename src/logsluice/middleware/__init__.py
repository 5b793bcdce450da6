"""
One row in `api_request` for each request a server answers, and rows for what jobs do. Imports no framework.

    asgi.py      LogMiddleware for ASGI: FastAPI, Starlette, Django, ...
    wsgi.py      LogMiddleware for WSGI: Flask, Django, ...
    jobs.py      decorators of functions and Celery tasks: JobLog and MessageEvent for each step
    celery.py    Celery's signals: the trace goes along with a task
    requests.py  what both kinds of middleware share: options, the row
    forwarded.py, bodies.py    the client's address behind proxies; what is kept of a body. Pure
    frameworks.py  the route's template and the error that a framework answered for, read from what it leaves around

What they promise: the application never notices. Whatever fails in here is said once on stderr, and the request goes
on; exceptions go on unchanged; nothing is read or sent ahead; a file that the server would send by itself still is.
"""

from __future__ import annotations

from logsluice.middleware.requests import note_error

__all__ = ["note_error"]
