"""Pages whose examples compile most are run with the longer half of the tests."""

import pytest

SLOW = {"equinox.md", "flax_model.md", "index.md", "optimizers.md", "probe.md", "sharpness.md"}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".md" and item.path.parent.name != "tests" and item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
