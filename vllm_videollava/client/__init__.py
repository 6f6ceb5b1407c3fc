"""Whatever asks a server."""
