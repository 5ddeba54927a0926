"""A whole Kubernetes on one machine, built from source, for the end-to-end tests and for playing with. `python -m cluster -h`."""
