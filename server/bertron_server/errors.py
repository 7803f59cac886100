"""What goes wrong beside a request: one tree, each message saying what to do."""


class TritonServerError(Exception):
    """Anything that keeps tritonserver from being found, started or stopped."""


class InstallationError(TritonServerError):
    """No usable tritonserver on this machine, or one without the files that it needs."""


class RepositoryError(TritonServerError):
    """The model repository is missing, empty or not yet exported."""


class PortTakenError(TritonServerError):
    """Another process listens on a port that the server was to have."""


class StartError(TritonServerError):
    """The server ended, or was not ready in time."""
