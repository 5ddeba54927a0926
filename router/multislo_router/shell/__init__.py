"""The router's shell: HTTP in, the core's events and decisions, HTTP out. All of its IO is here."""
