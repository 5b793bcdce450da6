"""What a server was asked, and how it answered. The middleware writes these; so can a program of its own."""

from __future__ import annotations

from dataclasses import field

from logsluice.types import logtype


@logtype(table="api_request")
class ApiRequest:
    """One request, and how it was answered."""

    method: str = field(metadata={"doc": "GET, POST, ..."})
    path: str = field(metadata={"doc": "The path that was asked for, without the query."})
    route: str | None = field(default=None, metadata={"doc": "The route's template, /orders/{id}: groups requests."})
    status: int | None = field(
        default=None,
        metadata={"doc": "Status of the answer. Where none was sent the middleware says 499 (client left) or 500."},
    )
    duration_ms: float | None = field(
        default=None, metadata={"doc": "From the request's start to the last byte of the answer, milliseconds."}
    )
    client_ip: str | None = field(
        default=None, metadata={"doc": "The client's address; a proxy's word if it is trusted."}
    )
    request_bytes: int | None = field(default=None, metadata={"doc": "Size of the request's body, bytes."})
    response_bytes: int | None = field(
        default=None, metadata={"doc": "Size of the answer's body as it was sent, bytes."}
    )
    user_agent: str | None = field(default=None, metadata={"doc": "The client's User-Agent."})
    request_body: str | None = field(
        default=None, metadata={"doc": "The request's body, cut and masked; NULL: not kept."}
    )
    error: str | None = field(
        default=None, metadata={"doc": "Type and text of the exception, or how it was broken off."}
    )
