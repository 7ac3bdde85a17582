"""Fixtures shared by all tests."""

import os
import shutil
import tempfile

import jax
import pytest


def pytest_configure(config):
    """Give this run of the tests, all its processes together, one place to keep compiled programs in: many compile
    the same."""
    if "LOSSLAND_TEST_CACHE" not in os.environ:
        os.environ["LOSSLAND_TEST_CACHE"] = tempfile.mkdtemp(prefix="lossland-compiled-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ["LOSSLAND_TEST_CACHE"], ignore_errors=True))
    settings = {
        "jax_compilation_cache_dir": os.environ["LOSSLAND_TEST_CACHE"],
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        os.environ.setdefault(name.upper(), str(value))  # for processes that tests start
        jax.config.update(name, value)


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
