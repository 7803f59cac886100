"""For Locust: ``cd loadtest && locust`` opens its web page."""

from bertron_loadtest.users import GrpcUser, HttpUser

__all__ = ["GrpcUser", "HttpUser"]
