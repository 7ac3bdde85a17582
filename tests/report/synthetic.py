"""Sweeps in closed form for reports, and headless Chromium."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np

from tests.figures.synthetic import catapults

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def small(sharpness=True):
    """Learning rates x seeds, with runs of several outcomes."""
    runs = catapults({"learning_rate": np.geomspace(0.1, 4, 9)}, num_seeds=4, sharpness=sharpness)
    size = runs["status"].shape
    if sharpness:
        for name in ("relative_sharpness", "sharpness"):
            runs[name][:, 1::2, 4:] *= 0.5  # every other seed ends well below the edge
    runs["peak_loss"] = runs["loss"].max("step")
    runs["num_rises"] = (runs["first_rise_step"] >= 0).astype(np.int32)
    runs["steps_done"] = (runs["status"].dims, np.full(size, 40))
    return runs


def data_of(page):
    """What the page holds, as its script reads it."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def floats(text):
    """Numbers of 32 bits from base64."""
    return np.frombuffer(base64.b64decode(text), "<f4")


def dumped(path, address="", folder=None, size="1280,900", *flags):
    """The document after its script has run, as headless Chromium has it."""
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        f"--user-data-dir={folder or path.parent / 'profile'}",
        f"--window-size={size}",
        *flags,
        "--dump-dom",
        f"file://{path}{address}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
