"""The measuring side: replay, demo and what the router itself costs, each over HTTP as a user would see it."""
