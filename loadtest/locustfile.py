from bertron_loadtest.users import GrpcUser, HttpUser, InfinityUser, RawGrpcUser, RawHttpUser

__all__ = ["GrpcUser", "HttpUser", "InfinityUser", "RawGrpcUser", "RawHttpUser"]
