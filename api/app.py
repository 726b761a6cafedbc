"""The application: its routes, and what stands around all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from api.health import healthz, readyz
from api.metrics import Counted, HttpMetrics, metrics
from api.problems import not_served

if TYPE_CHECKING:
    from service.settings import Settings

__all__ = ["make_app"]


def make_app(settings: Settings) -> Starlette:
    """Build the application of one process; opens no connection."""
    registry = CollectorRegistry()
    app = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ],
        middleware=[Middleware(Counted, metrics=HttpMetrics(registry))],
        exception_handlers={HTTPException: not_served},
    )
    app.state.settings = settings
    app.state.registry = registry
    return app
