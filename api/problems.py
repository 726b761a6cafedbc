"""Errors as RFC 9457 problem details."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

__all__ = ["not_served", "problem"]


class ProblemResponse(JSONResponse):
    """A JSON body under the media type of RFC 9457."""

    media_type = "application/problem+json"


def problem(status: int, detail: str, **more: Any) -> Response:
    """A problem of the general type; *more* are members of our own."""
    title = HTTPStatus(status).phrase
    content = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return ProblemResponse(content, status)


async def not_served(request: Request, error: Exception) -> Response:
    """Answer what Starlette refuses: an unknown path, a method that a path does not have."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"nothing is served at {request.url.path}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.url.path} does not take {request.method}"
    else:
        detail = error.detail
    answer = problem(error.status_code, detail)
    answer.headers.update(error.headers or {})
    return answer
