"""Measuring instruments: replay, demo and the router's own cost."""
