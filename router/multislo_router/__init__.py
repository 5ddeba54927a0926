"""The router: a pure core that decides where a request goes, and the shell that carries it there."""
