"""The W3C trace context of the caller, where OpenTelemetry is in use."""

from __future__ import annotations

import sys
from typing import Dict


def trace_headers() -> Dict[str, str]:
    """Return ``traceparent`` and what goes with it, or nothing where nothing is traced.

    Names are in lower case, as gRPC wants them; some propagators write others.

    OpenTelemetry is looked for among the loaded modules: a program that has not imported it has
    no trace, and importing it here would make every program pay.
    """
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry import propagate

    carrier: Dict[str, str] = {}
    propagate.inject(carrier)
    return {name.lower(): value for name, value in carrier.items()}
