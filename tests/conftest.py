"""Fixtures shared by all tests."""

import jax
import pytest


@pytest.fixture
def x64():
    """Double precision inside one test; global settings stay as they are."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def compilations():
    """Programs compiled by XLA while the test runs: a list that grows by one at each compilation."""
    events: list[str] = []

    def listen(event: str, duration: float, **kwargs: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def pytest_collection_modifyitems(items):
    """Files with long tests first, so that no process is left with one at the end."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
