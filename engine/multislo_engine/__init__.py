"""Engines: the planners and the model of one in simulated time, and the emulated engine that serves it over HTTP."""
