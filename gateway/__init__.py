"""The stateless server of one site: the v2 API over HTTP, the change feed over gRPC."""
