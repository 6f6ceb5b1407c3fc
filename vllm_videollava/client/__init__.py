"""Starts a server, and builds messages for it."""
