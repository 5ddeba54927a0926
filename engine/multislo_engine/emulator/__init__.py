"""`multislo emulate`: an HTTP server that looks like vLLM to a client and whose timing is the engine model's."""
