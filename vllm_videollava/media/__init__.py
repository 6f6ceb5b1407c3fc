"""Turns URLs, paths and arrays into decoded pixels."""
