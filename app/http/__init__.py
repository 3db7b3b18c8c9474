"""Everything between a connection and an endpoint."""
