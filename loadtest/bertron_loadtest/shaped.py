"""For Locust: phases one after the other instead of users by hand; see ``--shape``."""

from bertron_loadtest import saving, web  # noqa: F401
from bertron_loadtest.shape import PhaseShape
from bertron_loadtest.users import GrpcUser, HttpUser, InfinityUser, RawGrpcUser, RawHttpUser

__all__ = ["GrpcUser", "HttpUser", "InfinityUser", "PhaseShape", "RawGrpcUser", "RawHttpUser"]
