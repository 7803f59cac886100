"""What tests against the real server share: texts, neighbours, requests without our client."""

import http.client
import itertools
import json
import threading
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from bertron_client import Client

ROOT = Path(__file__).parents[2]
MODEL_REPOSITORY = ROOT / "model_repository"
# Real sentences of customers and film critics, 3 to 80 words: see NOTICE.
TEXTS = (ROOT / "server/bertron_server/demo_texts.txt").read_text("utf-8").splitlines()
TIMEOUT_S = 60.0


class Neighbours:
    """Good clients that never stop asking, and check every answer against the known vectors."""

    def __init__(self, url: str, known: np.ndarray, threads: int = 4) -> None:
        self.failures: list[str] = []
        self.answered = 0
        self._known = known
        self._stop = threading.Event()
        self._client = Client(url, timeout_s=TIMEOUT_S)
        self._threads = [
            threading.Thread(target=self._ask, args=(first,), daemon=True)
            for first in range(threads)
        ]

    def __enter__(self) -> "Neighbours":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        self._client.close()

    def _ask(self, first: int) -> None:
        for turn in itertools.count(first):
            if self._stop.is_set():
                return
            rows = [(turn * 7 + k * 13) % len(TEXTS) for k in range(1 + turn % 3)]
            try:
                found = np.asarray(self._client.embed([TEXTS[row] for row in rows]))
            except Exception as error:
                self.failures.append(repr(error))
                return
            if not np.allclose(found, self._known[rows], atol=1e-5):
                self.failures.append(f"wrong rows {rows}")
                return
            self.answered += 1


def raw_http(
    url: str, path: str, body: bytes | dict, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """POST without any client of ours: (status, body)."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
    try:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request("POST", path, data, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    finally:
        connection.close()
