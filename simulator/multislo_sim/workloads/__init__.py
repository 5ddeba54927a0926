"""Workloads: requests with arrival times, lengths and SLOs, from traces or drawn by a seed. Used by replay, demo and the simulator's
experiments. Pure except `traces` and `build.from_trace`, which read the file that their caller names."""
