"""The models that clients may name: the served names of the fleet's one model, and its LoRA adapters. What /v1/models answers, which names
are refused, and what was asked of each. Owned by the gateway."""

from collections import Counter
from typing import Any

from multislo_router.shell.errors import Fault, Reason
from multislo_router.shell.routes import normalised
from multislo_router.shell.settings import ShellSettings


class Models:
    """`length_max`: tokens of a request; `created`: Unix time."""

    __slots__ = ("_adapters", "_documents", "_own", "_paths", "output_tokens", "requests")

    def __init__(self, settings: ShellSettings, length_max: int | None, created: int) -> None:
        self._own = settings.served_names
        self._adapters = dict(settings.adapters)
        names = (*self._own, *self._adapters)
        self._documents = {name: self._document(name, length_max, created) for name in names}
        self._paths = {normalised(b"/" + name.encode())[1:]: name for name in reversed(names)}
        self.requests: Counter[str] = Counter(dict.fromkeys(names, 0))
        """Scheduled requests by the model that they asked for. There are no other keys than the known names; so it is with tokens."""
        self.output_tokens: Counter[str] = Counter(dict.fromkeys(names, 0))

    def _document(self, name: str, length_max: int | None, created: int) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "multislo",
            "root": self._adapters.get(name, self._own[0]),
            "parent": self._own[0] if name in self._adapters else None,
            "max_model_len": length_max,
        }

    def asked_for(self, name: str | None) -> str | None:
        """The model that a request means, counted; None where any name is relayed. Raises a `Fault` for one that is not served."""
        if not self._own:
            return None
        if name is None:
            name = self._own[0]
        elif name not in self._documents:
            raise self._unknown(name)
        self.requests[name] += 1
        return name

    def answer(self, asked: bytes) -> object:
        """Of GET /v1/models, or of /v1/models/NAME with the name as `Target.model` has it."""
        if not asked:
            return {"object": "list", "data": list(self._documents.values())}
        name = self._paths.get(asked)
        if name is None:
            raise self._unknown(asked.decode("utf-8", "replace"))
        return self._documents[name]

    def _unknown(self, name: str) -> Fault:
        message = f"model: {name!r} is not served here; served are: {', '.join(self._documents)}"
        return Fault(Reason.UNKNOWN_MODEL, message, param="model")
