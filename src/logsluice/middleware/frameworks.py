"""
What frameworks leave around, read without importing one: the route's template, the exception they answered for.

    the application's own word     scope["logsluice.route"], environ["logsluice.route"]
    Starlette, FastAPI             scope["route"], scope["path_params"]
    Flask                          environ["werkzeug.request"].url_rule, gone once the application has returned
    Django                         the path is resolved once more, by `django.urls.resolve`

Flask and Django turn an exception into an answer, and tell of it by a signal, `got_request_exception`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEY = "logsluice.route"
_connected: set[str] = set()  # modules whose signal we listen to: once a process


def asgi_route(scope: Mapping[str, Any], root_path: str) -> str | None:
    """Return the template, `/orders/{id}`; None when no route was found. `root_path`: as it was before routing."""
    if isinstance(said := scope.get(KEY), str):
        return said
    path = str(scope["path"])
    inner = path[len(root_path) :] if root_path and path.startswith(root_path) else path
    route = scope.get("route")
    if route is None:
        return _django(inner)
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    params = {name: str(value) for name, value in (scope.get("path_params") or {}).items()}
    return _whole(inner, template, params) if isinstance(template, str) else None


def _whole(path: str, template: str, params: dict[str, str]) -> str:
    """
    Return the template with what stands before it, as with a mount or FastAPI's `include_router`.

    A route knows its own part of the path alone. The part before is the path's, with the values put back to names.
    """
    try:
        tail = template.format(**params)
    except (KeyError, IndexError, ValueError):
        return template
    if not path.endswith(tail):
        return template  # a mount, whose template has a rest of its own; a redirected slash
    before = path[: len(path) - len(tail)].split("/")
    names = {value: name for name, value in params.items() if f"{{{name}}}" not in template}
    return "/".join(f"{{{names[part]}}}" if part in names else part for part in before) + template


def wsgi_route(environ: Mapping[str, Any], path: str) -> str | None:
    """Return the template, `/orders/<int:id>`; None when no route was found."""
    if isinstance(said := environ.get(KEY), str):
        return said
    return None if "werkzeug.request" in environ else _django(path)


def werkzeug_route(environ: Mapping[str, Any]) -> str | None:
    """Return the template of Flask's route; to be asked while the application runs."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return getattr(rule, "rule", None)


def _django(path: str) -> str | None:
    urls = sys.modules.get("django.urls")
    settings: Any = getattr(sys.modules.get("django.conf"), "settings", None)
    if urls is None or settings is None or not settings.configured:
        return None
    try:
        return f"/{urls.resolve(path).route}"
    except Exception:
        return None  # a path that is not found, or not Django's


def watch_errors(note: Callable[[BaseException | None], None]) -> None:
    """Have `note` called with each exception that a loaded framework answers for, in the request's own context."""
    for module in ("flask.signals", "django.core.signals"):
        signal: Any = getattr(sys.modules.get(module), "got_request_exception", None)
        if signal is not None and module not in _connected:
            _connected.add(module)

            def receiver(_sender: Any = None, exception: BaseException | None = None, **_more: Any) -> None:
                note(exception if exception is not None else sys.exc_info()[1])

            signal.connect(receiver, weak=False)
