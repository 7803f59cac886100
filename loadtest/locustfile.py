"""For Locust: ``cd loadtest && locust`` opens its web page."""

from bertron_loadtest import web  # noqa: F401 - our own figures on that page
from bertron_loadtest.users import GrpcUser, HttpUser, InfinityUser, RawGrpcUser, RawHttpUser

__all__ = ["GrpcUser", "HttpUser", "InfinityUser", "RawGrpcUser", "RawHttpUser"]
