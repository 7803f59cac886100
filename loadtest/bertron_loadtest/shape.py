"""The shape of a load for Locust: phases one after the other, and an end."""

import inspect
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import gevent
from locust import LoadTestShape, events
from locust.runners import MasterRunner

from bertron_loadtest.phases import SHAPES, WARM_UP, Phase, PhaseRecord, is_saturated, plan_phases
from bertron_loadtest.users import recorder

# Workers report every three seconds: until then a step of a ramp is not known to its end.
_UNREPORTED_S = 3.5


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="steady")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load after the warm-up")
    parser.add_argument("--warm-up-s", type=float, default=3.0, help="before it")


def note_lost_workers(runner: Any, *, is_stopped: bool = False) -> None:
    """Make it the run's problem that a worker died: what it had sent last is in no count.

    Args:
        runner: Locust's, of this process; only a master has workers.
        is_stopped: Whether all workers were told to stop and had the time to say that they did.
    """
    if not isinstance(runner, MasterRunner) or recorder.problem:
        return
    # A worker counts as missing when it has been silent for three seconds; one that stops leaves.
    lost = runner.clients.all if is_stopped else runner.clients.missing
    if lost:
        names = ", ".join(sorted(worker.id for worker in lost))
        recorder.problem = (
            f"load workers were lost, and what they sent last is not counted: {names}"
        )


class PhaseShape(LoadTestShape):  # type: ignore[misc] # locust is not typed
    """``--users`` at most, but for a spike; see ``phases.plan_phases``."""

    use_common_options = True  # --users is Locust's own

    def reset_time(self) -> None:
        """Begin anew, as Locust does with each run from its web page."""
        super().reset_time()
        # Locust's stop looks at the stack, which reads every file in it and blocks all users for
        # 0.3 s, just as the last calls end. The second look finds the files in memory.
        inspect.stack()
        self._phases: Iterator[Phase] = iter(())
        self._phase: Phase | None = None
        self._start_s = 0.0
        self._rates: list[float] = []
        self._is_begun = False

    def tick(self) -> tuple[int, float] | None:
        """Return users and users a second to reach them; None ends the run."""
        note_lost_workers(self.runner)
        if recorder.problem:
            return None
        if not self._is_begun:
            self._is_begun = True
            options = self.runner.environment.parsed_options
            phases = plan_phases(
                options.shape,
                users=options.num_users or 1,
                seconds=options.seconds,
                warm_up_s=options.warm_up_s,
            )
            self._is_ramp = options.shape == "ramp"
            self._phases = iter(phases)
            self._begin()
        # The first begins when the known vectors are there; Locust goes on ticking meanwhile.
        self._start_s = max(self._start_s, recorder.ready_s or recorder.clock.now())
        if self._phase and recorder.clock.now() >= self._start_s + self._phase.seconds:
            self._end(self._phase)
            self._begin()
        if self._phase is None:
            if isinstance(self.runner, MasterRunner):
                # Its quit() waits half a second for the workers; this waits for their last calls.
                self.runner.stop()
                gevent.sleep(_UNREPORTED_S)
                note_lost_workers(self.runner, is_stopped=True)
            return None
        return self._phase.users, float(self._phase.users)

    def _begin(self) -> None:
        self._phase = next(self._phases, None)
        self._start_s = recorder.clock.now()

    def _end(self, phase: Phase) -> None:
        end_s = recorder.clock.now()
        recorder.phases.append(PhaseRecord(phase.name, phase.users, self._start_s, end_s))
        if not self._is_ramp or phase.name == WARM_UP:
            return
        seen_until_s = end_s
        if isinstance(self.runner, MasterRunner):
            seen_until_s = max(end_s - _UNREPORTED_S, self._start_s + 1)
        self._rates.append(recorder.texts_per_s(self._start_s, seen_until_s))
        if is_saturated(self._rates):
            self._phases = iter(())
