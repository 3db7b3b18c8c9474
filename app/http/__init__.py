"""What stands between a connection and an endpoint."""
