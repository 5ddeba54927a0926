"""What users ask for: requests with arrival times, lengths and SLOs, from traces or drawn by a seed. Replay, demo and
the simulator's experiments all take theirs from here. Pure but for `traces`, which reads the file that its caller
names."""
