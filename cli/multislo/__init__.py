"""The `multislo` command: one entry to every program of the project. It holds no logic of its own."""
