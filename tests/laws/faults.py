"""Exceptions where no one expects them: raised inside the product's own code at a chosen call of, or return from, one of its functions.
What a test does with it: try every place, or many, and show that nobody waits for ever and nothing is miscounted."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any, Self


class Injected(Exception):
    """Nobody's fault but the test's."""


class Fault:
    """Within `with`, raises `Injected` at the `number`-th call of or return from a function in `folders`, once, in this thread; may be
    entered again and goes on counting. `spared` are names of functions and files that it leaves alone. `at`: where it was raised."""

    def __init__(self, number: int, *folders: Path, spared: frozenset[str] = frozenset()) -> None:
        self.at: str | None = None
        self.passed = 0
        self._number = number
        self._folders = tuple(str(folder) for folder in folders)
        self._spared = spared
        self._watched: dict[str, bool] = {}
        self._before: Any = None

    def __enter__(self) -> Self:
        if self.at is None:
            self._before = sys.gettrace()
            sys.settrace(self._step)
        return self

    def __exit__(self, *raised: object) -> None:
        if sys.gettrace() == self._step:
            sys.settrace(self._before)

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event not in ("call", "return"):
            return self._step
        code = frame.f_code
        path = code.co_filename
        if path not in self._watched:
            self._watched[path] = path.startswith(self._folders) and Path(path).name not in self._spared
        if not self._watched[path] or code.co_name in self._spared or self.at is not None:
            return None
        frame.f_trace_lines = False
        self.passed += 1
        if self.passed == self._number:
            self.at = f"{event} {Path(path).name} {code.co_qualname}:{frame.f_lineno}"
            raise Injected(self.at)
        return self._step
