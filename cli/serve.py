"""`allotment serve`: the HTTP api."""

from __future__ import annotations

import asyncio
import signal

from api.server import ApiServer
from cli.listening import listening_socket, url_of
from cli.options import AsJson
from cli.output import Output
from cli.session import run, serving, settings_for

__all__ = ["EXAMPLES", "command"]

EXAMPLES = (
    "allotment serve",
    "WEB_HOST=0.0.0.0 WEB_PORT=80 allotment serve    open to the network",
    "curl http://127.0.0.1:8000/readyz               may it get requests?",
)


def command(*, as_json: AsJson = False) -> None:
    """Answer HTTP on WEB_HOST and WEB_PORT, until SIGTERM or Ctrl-C."""
    run(_serve(Output(as_json=as_json)))


async def _serve(output: Output) -> None:
    async with serving(settings_for(quiet=False), output) as settings:
        listener = listening_socket(settings.web_host, settings.web_port, setting="WEB")
        with listener:
            api = ApiServer(settings)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, api.stop)
            task = asyncio.create_task(api.serve_on(listener))
            await api.ready(unless=task)
            url = url_of(settings.web_host, listener.getsockname()[1])
            output.result({"api": url}, f"api       {url}")
            await task
