"""A server on localhost that speaks as much of the Hub's protocol as huggingface_hub, datasets and transformers use.

Models and datasets, commits, single and multipart LFS uploads, branches, pull requests, ranges, tokens, private and gated
repositories, refused stale parents. Tests inject faults: status codes, dropped connections, calls at a certain request.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tests.hub_server import api, files
from tests.hub_server.access import Refused
from tests.hub_server.store import Repository, Store, User

TOKEN, READ_TOKEN, OTHER_TOKEN = ("hf_" + letter * 34 for letter in "abc")


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and path match.

    Args:
        act: a status, "drop", or a function that is called; if it returns True, the connection is dropped too.
    """

    method: str
    path: str
    act: int | str | Callable[[], bool | None]
    times: int = 1


class HubServer:
    """Start with `with HubServer() as hub:`; `hub.url` is the endpoint.

    `hub.store` contains what was written, `hub.requests` every (method, path), `hub.faults` the faults to come.
    """

    def __init__(self):
        users = {TOKEN: User("user"), READ_TOKEN: User("user", "read"), OTHER_TOKEN: User("other")}
        self.store, self.requests, self.faults = Store(users=users), [], []
        config = uvicorn.Config(self._app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> "HubServer":
        self.thread.start()
        while not self.server.started:
            self.thread.join(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_) -> None:
        self.server.should_exit = True
        self.thread.join()

    def repository(self, name: str, kind: str = "models") -> Repository:
        return self.store.repositories[kind, name]

    def count(self, method: str, path: str) -> int:
        """Number of requests so far with this method and with `path` in their path."""
        return sum(m == method and path in p for m, p in self.requests)

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.state.store = self.store
        app.middleware("http")(self._pass)
        app.add_exception_handler(Refused, lambda _, error: error.response())
        app.include_router(api.router)
        app.include_router(files.router)
        return app

    async def _pass(self, request: Request, handle) -> Response:
        path = request.url.path
        self.requests.append((request.method, path))
        for fault in self.faults:
            if fault.times and fault.method == request.method and fault.path in path:
                fault.times -= 1
                if callable(fault.act):
                    if fault.act():
                        return Dropped()
                elif fault.act == "drop":
                    return Dropped()
                else:
                    return JSONResponse({"error": "injected"}, status_code=fault.act, headers={"Retry-After": "0"})
        return await handle(request)


class Dropped(Response):
    """A connection that breaks in the middle of a response."""

    async def __call__(self, scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        raise ConnectionResetError("injected")
