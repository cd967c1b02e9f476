"""Serve the playground's page, on 127.0.0.1 only.

The page asks no other address (a content security policy sees to that), and no other page can ask
the server: requests that name another host, as after DNS rebinding, are refused, and so are
requests that are not JSON, which other pages could send without asking first.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from potstill.cli.demo.playground import Playground, describe, open_playground
from potstill.pipeline.run_models import models_of_run
from potstill.reporting.pages import filled
from potstill.reporting.results import read_results

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
MOST_BYTES = 2_000_000  # of a request
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def require_server() -> None:
    """Refuse to serve without the extra.

    Raises:
        ValueError: starlette or uvicorn is not installed.
    """
    try:
        import starlette.applications
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{error.name}: the package is not installed, and the playground needs it. Run "
            "`pip install 'potstill[demo]'`."
        ) from None
    del starlette


def serve(
    run: Path, port: int, *, open_browser: bool, say: Callable[[str], None] = lambda _: None
) -> None:
    """Serve a run's playground until Ctrl-C, which becomes KeyboardInterrupt.

    Args:
        run: A finished run's folder.
        port: The port; 0: any free port.
        open_browser: Open the page, where there is a screen.
        say: Receives the page's address and notes.

    Raises:
        ValueError: The run is not finished, the extra is missing, the port is taken, or no model
            can be loaded.
    """
    require_server()
    found = models_of_run(run)
    with listen(port) as listener:
        say(f"Loading {len(found.models)} models of {run}.")
        playground = open_playground(found, read_results(run).evaluation, say)
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        say(f"The playground is at {address} (Ctrl-C ends it).")
        if open_browser and _has_screen():
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
        server_of(playground).run(sockets=[listener])
        # only a signal ends it, and that is raised again, unless the process was started to ignore
        # it, as a shell does with commands in the background of a script
        raise KeyboardInterrupt


def server_of(playground: Playground) -> uvicorn.Server:
    """Return a server that prints only errors; Ctrl-C and SIGTERM reach the caller."""
    import uvicorn

    config = uvicorn.Config(
        create_app(playground),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def listen(port: int) -> socket.socket:
    """Return a listening socket of this machine's own address, which no other machine reaches.

    Raises:
        ValueError: The port is taken, or the system keeps it for itself.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        # at once: until then another process could bind it too; early requests wait
        listener.listen()
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        what = f"{port} is taken" if taken else f"{port} cannot be used ({error.strerror})"
        raise ValueError(f"--port: {what}. Choose another port, or 0 for any free one.") from None
    return listener


def _has_screen() -> bool:
    """Return whether there is a screen: without one, a browser would take over the terminal."""
    return sys.platform != "linux" or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


# --- the application ------------------------------------------------------------------------------


def create_app(playground: Playground) -> Starlette:
    """Return the ASGI application: the page, its script and style, and two questions it asks."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def fixed(content: str, media_type: str) -> Callable[[Request], Any]:
        async def give(_: Request) -> Response:
            return Response(content, media_type=media_type, headers=HEADERS)

        return give

    def question(ask: Callable[[list[str]], dict[str, Any]]) -> Callable[[Request], Any]:
        async def give(request: Request) -> Response:
            try:
                typed = await _typed(request, len(playground.fields))
                found, status = await run_in_threadpool(ask, typed), 200
            except ValueError as error:
                found, status = {"problem": str(error)}, 422
            return JSONResponse(found, status, headers=HEADERS)

        return give

    files = resources.files("potstill.cli.demo").joinpath("page")
    script, style = (
        files.joinpath(f"playground.{ending}").read_text("utf-8") for ending in ("js", "css")
    )
    routes = [
        Route("/", fixed(render(playground), "text/html")),
        Route("/playground.js", fixed(script, "text/javascript")),
        Route("/playground.css", fixed(style, "text/css")),
        Route("/answer", question(playground.answer), methods=["POST"]),
        Route("/times", question(playground.times), methods=["POST"]),
    ]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(routes=routes, middleware=[guard])


async def _typed(request: Request, fields: int) -> list[str]:
    """Return the texts in the page's fields.

    Raises:
        ValueError: The request did not come from the page.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ValueError("The request is not JSON. Send application/json.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise ValueError("The text is too long. Paste less.")
    try:
        typed = json.loads(body)["typed"]
    except (ValueError, TypeError, KeyError, RecursionError):
        typed = None
    if (
        not isinstance(typed, list)
        or len(typed) != fields
        or not all(isinstance(text, str) for text in typed)
    ):
        raise ValueError(f'The request is not {{"typed": […]}} with {fields} texts.')
    if any("\ud800" <= letter <= "\udfff" for text in typed for letter in text):
        raise ValueError("The text holds half a character (a lone surrogate). Type it again.")
    return typed


def render(playground: Playground) -> str:
    """Return the page; whatever comes from the run is escaped."""
    loader = jinja2.PackageLoader("potstill.cli.demo", "page")
    return filled("playground.html.j2", describe(playground), loader)
