"""How many random examples the property tests try, and which: the same ones in every `make test`, others in every round of `make fuzz`.

A test says only how many (`@settings(max_examples=...)`) and what is special to it. Everything else is said here, once.
"""

import pkgutil
from importlib import import_module

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

FIXED, SEARCH = "fixed", "search"
PACKAGES = (
    "multislo_api",
    "multislo_perf",
    "multislo_engine",
    "multislo_router",
    "multislo_operator",
    "multislo_sim",
    "multislo_bench",
)

# A busy machine is no failure: no deadline for an example, and no complaint about slow strategies.
settings.register_profile(
    FIXED, derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(SEARCH, settings.get_profile(FIXED), derandomize=False, database=None)
settings.load_profile(FIXED)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Hypothesis tries constants of our modules too, of those that happen to be loaded. A search gets all of them, so that its seed
    alone decides. The fixed examples get none: they may not change with an unrelated line of code, or with the order of the tests."""
    if settings.get_current_profile_name() == SEARCH:
        for package in PACKAGES:
            for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
                if not module.name.endswith("__main__"):
                    import_module(module.name)
    else:
        providers._get_local_constants = providers.Constants
