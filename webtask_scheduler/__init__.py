"""Calls a URL at a promised time."""

__version__ = "0.2.0"
