"""NVIDIA's planner in its own off-line replay, on the requests that our fleets get. `driver` runs in an interpreter that has
ai-dynamo; the rest is ours and needs nothing of theirs."""
