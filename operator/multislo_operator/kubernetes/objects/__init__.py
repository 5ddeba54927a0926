"""What is made in the cluster for a MultiSLOServing: pure functions from a validated manifest to objects ready for server-side apply."""
