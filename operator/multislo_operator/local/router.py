"""The router of a fleet on one machine: its process, kept alive. Owned by `up`."""

import asyncio
import time
from collections.abc import Sequence

from multislo_api.fleet import TOKEN_VARIABLE
from multislo_operator.local.child import Child, back_off_s
from multislo_operator.local.journal import Journal

STEADY_S = 60.0


class RouterEnded(Exception):
    """The router ended, and would do so again: it had never answered, or another one has its port."""


class RouterProcess:
    def __init__(self, command: Sequence[str], child: Child, journal: Journal, token: str) -> None:
        self.child = child
        self.answered = asyncio.Event()
        """Set by whoever has seen its admin listener answer to its token."""
        self.stranger: str | None = None
        """Set while another router answers in its place."""
        self.stopping = False
        self._command = command
        self._journal = journal
        self._environment = {TOKEN_VARIABLE: token}

    async def live(self) -> None:
        """Start, and start again, until it is told to stop. Raises RouterEnded."""
        failures = 0
        while not self.stopping:
            began = time.monotonic()
            try:
                code = await self.child.run(self._command, self._environment)
            except OSError as error:
                raise RouterEnded(f"the router cannot be started: {error}") from None
            if self.stopping:
                return
            words = self.child.last_words(5)
            if not self.answered.is_set() or self.stranger is not None:
                ended = f"the router ended with code {code}" + (f":\n{words}" if words else "")
                raise RouterEnded(ended if self.stranger is None else f"{self.stranger}; {ended}")
            lived_s = time.monotonic() - began
            failures = 1 if lived_s >= STEADY_S else failures + 1
            wait_s = back_off_s(failures)
            told = f"the router ended with code {code} after {lived_s:.0f} s, starting it again in {wait_s:g} s"
            self._journal.note("router_ended", f"{told} ({self.child.log})", code=code, last_words=words)
            await asyncio.sleep(wait_s)

    def stop(self) -> None:
        """SIGTERM: answers under way may finish."""
        self.stopping = True
        self.child.terminate()
