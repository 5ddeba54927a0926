"""How long an iteration of an engine takes: the latency model, its profiles, and what follows from them for sizing."""
