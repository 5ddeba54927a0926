"""The router's core: decides where a request goes. Pure: no IO, no clock, no dice of its own, no await.

Read `events` and `decisions` first: they are the specification. `RouterCore.handle(event)` is the only door into state.
"""
