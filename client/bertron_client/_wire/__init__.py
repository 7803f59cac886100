"""KServe v2 as bytes: what is said to a server, over HTTP and gRPC. No I/O here."""
