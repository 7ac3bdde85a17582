"""The path of a new user: every command of the page, as it stands there, in an environment of its own."""

import os
import shutil
import subprocess
import time

import pytest

from tests.docs.pages import DOCS, ROOT, blocks

COMMANDS = "\n".join(block.text for block in blocks(DOCS / "first_steps.md") if block.language == "bash")


@pytest.mark.long
def test_every_command_in_an_empty_environment(tmp_path):
    """A copy of the tracked files, no cache of compiled programs, no environment variable of this one."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX", "PYTHON"))}
    began = time.perf_counter()
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", COMMANDS], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=1800,
    )  # fmt: skip
    minutes = (time.perf_counter() - began) / 60
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"first steps took {minutes:.1f} minutes")
    for made in ("runs/first/stability_map.png", "runs/flax_model/explanation.png", "runs/flax_model/runs/report.html"):
        assert (tmp_path / made).exists(), made
    assert "verified" in done.stdout
