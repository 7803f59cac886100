"""Whether an ensemble still answers: seen by what others got from it, else by asking it."""

import http.client
import json
import threading
import time
from collections.abc import Callable

from bertron_server.health import PROBE_TEXT

# A sign that is this old is worth asking for a new one, unless others got an answer meanwhile.
LOOK_EVERY_S = 5.0
# Errors in a row that are no accident.
ERRORS_THAT_COUNT = 2
_COUNT_TIMEOUT_S = 2.0
# Of the time between two looks, what the watcher itself can have missed is not held against it.
_LONGEST_STEP_S = 2 * LOOK_EVERY_S

# Sends a GET, or a POST of the body, and returns status and body of the answer.
Ask = Callable[[str, bytes | None, float], tuple[int, bytes]]


class SignsOfLife:
    """Watches one ensemble of a running server.

    A text of our own is embedded only while nobody else gets an answer. So a busy server is not
    asked at all, and one whose queue is long is not taken for one that stands still.

    Args:
        ask: Asks the server's HTTP endpoint: path, body and timeout in seconds. It raises OSError
            or http.client.HTTPException where there is no answer.
        model: The ensemble's name.
        stall_timeout_s: How long nobody may get an answer while our own text waits for one.
    """

    def __init__(self, ask: Ask, model: str, stall_timeout_s: float) -> None:
        self._ask = ask
        self._model = model
        self._stall_timeout_s = stall_timeout_s
        self._answered: int | None = None
        self._is_silent = False  # since when is in _silent_s
        self._silent_s = 0.0
        self._errors = 0
        self._probe: _Probe | None = None
        self._looked = time.monotonic()

    def look(self) -> str | None:
        """Return why the ensemble must be taken for dead, or None; at most a few seconds long.

        To be called every ``LOOK_EVERY_S``, or sooner after an error.
        """
        now = time.monotonic()
        # A watcher that was stopped itself, as by a paused container, has seen no silence.
        self._silent_s += min(now - self._looked, _LONGEST_STEP_S)
        self._looked = now
        others_got_answers = self._others_got_answers()
        is_alive = bool(others_got_answers)
        if self._probe is not None and self._probe.is_done:
            probe, self._probe = self._probe, None
            if probe.is_refused:
                # The tokenizer refuses what it finds too much before a model that stands still,
                # too. Before one that works, others get answers.
                is_alive = others_got_answers is not False
            elif probe.error is None:
                is_alive = True
            elif not is_alive:
                self._errors += 1
                if self._errors >= ERRORS_THAT_COUNT:
                    return f"{self._model} fails: {probe.error}"
        if is_alive:
            self._is_silent = False
            self._errors = 0
            return None
        if not self._is_silent:
            self._is_silent = True
            self._silent_s = 0.0
        if self._probe is None:
            # It outlasts the limit, so that it is silence that ends it and no error.
            timeout_s = self._stall_timeout_s + 2 * _LONGEST_STEP_S
            self._probe = _Probe(self._ask, self._model, timeout_s)
        if self._silent_s > self._stall_timeout_s:
            return f"{self._model} has answered nobody for {self._silent_s:.0f} s"
        return None

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last text of our own failed: look again soon."""
        return self._errors > 0

    def _others_got_answers(self) -> bool | None:
        """Whether more requests were answered well than at the last look, by the server's count.

        None where the count could not be read now or then.
        """
        try:
            status, body = self._ask(f"/v2/models/{self._model}/stats", None, _COUNT_TIMEOUT_S)
            if status != http.client.OK:
                return None
            answered = sum(
                int(version["inference_stats"]["success"]["count"])
                for version in json.loads(body)["model_stats"]
            )
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return None
        before, self._answered = self._answered, answered
        return None if before is None else answered > before


class _Probe:
    """One text, embedded in a thread of its own."""

    def __init__(self, ask: Ask, model: str, timeout_s: float) -> None:
        self.error: str | None = None
        self.is_refused = False  # for a full queue, or one that waited for too long
        self._ask = ask
        # Not the shorter `generate`, which says 400 to everything, a dead model included.
        self._path = f"/v2/models/{model}/infer"
        self._timeout_s = timeout_s
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        text = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [PROBE_TEXT]}
        body = json.dumps({"inputs": [text]}).encode()
        try:
            status, answer = self._ask(self._path, body, self._timeout_s)
        except (OSError, http.client.HTTPException) as error:
            self.error = str(error) or type(error).__name__
            return
        if status == http.client.OK:
            self.error = _fault_of(answer)
        elif status == http.client.SERVICE_UNAVAILABLE:
            self.is_refused = True
        elif status >= http.client.INTERNAL_SERVER_ERROR:
            self.error = answer.decode("utf-8", "replace").strip() or f"status {status}"


def _fault_of(answer: bytes) -> str | None:
    def refuse(name: str) -> None:
        raise ValueError(f"the answer has {name} in it")

    try:
        json.loads(answer, parse_constant=refuse)
    except ValueError as error:
        return str(error)
    return None
