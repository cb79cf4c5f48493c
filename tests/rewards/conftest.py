"""Arguments as a stage gives them, a file of reward functions, and an OpenAI-compatible server on this machine."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Answer = Callable[[dict[str, Any], int], tuple[int, Any, dict[str, str]]]


def arguments(completions: Sequence[str], **columns: list[Any]) -> dict[str, list[Any]]:
    count = len(completions)
    given = {"prompts": ["6 * 7?"] * count, "completions": list(completions), "prompt_id": ["a"] * count}
    return {**given, "truncated": [False] * count, "completion_ids": [[1]] * count, **columns}


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that writes a reward file and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(text)
        return str(path)

    return write


class ChatServer:
    """Answers chat completions by a function of the request and the number of the call; keeps what it was sent."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    number = len(outer.requests)
                status, content, headers = answer(body, number)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client gave up

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def said(text: str, tokens: int = 10) -> dict[str, Any]:
    """Return a chat completion as the API gives it."""
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {"total_tokens": tokens}}


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], ChatServer]]:
    """Return a function that starts a server, ended with the test."""
    servers: list[ChatServer] = []

    def start(answer: Answer) -> ChatServer:
        servers.append(ChatServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
