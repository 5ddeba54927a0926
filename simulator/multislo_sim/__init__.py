"""A discrete-event fleet built from the production router core and the engine model, and the workloads to run on it."""
