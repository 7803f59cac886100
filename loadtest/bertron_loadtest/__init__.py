"""Load on a Bertron server, every answer checked. Run ``python -m bertron_loadtest --help``."""
