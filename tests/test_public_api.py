"""The public names and their signatures, kept in a file: a change of either is seen in review.

`python -m tests.test_public_api` writes the file anew. A name or argument that goes away, or a default that changes,
needs a line in CHANGELOG.md and, from version 1.0 on, a new major version.
"""

import inspect
import re
import sys
from pathlib import Path

import lossland as ll

SNAPSHOT = Path(__file__).parent / "public_api.txt"
MODULES = {
    "": ll,
    "adaptive.": ll.adaptive,
    "curvature.": ll.curvature,
    "figures.": ll.figures,
    "landscapes.": ll.landscapes,
    "problems.": ll.problems,
}


def signatures():
    """One line per public name: what it is called with, or that it is a module or an enumeration."""
    lines = []
    for prefix, module in MODULES.items():
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.ismodule(value):
                lines.append(f"{prefix}{name}: module")
            elif hasattr(value, "__members__"):
                lines.append(f"{prefix}{name}: one of {', '.join(value.__members__)}")
            elif callable(value):
                lines.append(f"{prefix}{name}{_arguments(value)}")
            else:
                lines.append(f"{prefix}{name}: {type(value).__name__}")
    return "\n".join(lines) + "\n"


def _arguments(function):
    """Names, kinds and defaults; not annotations, whose text differs between versions of Python and JAX."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty, default=_default(parameter.default))
        for parameter in inspect.signature(function).parameters.values()
        if not parameter.name.startswith("_")
    ]
    return str(inspect.Signature(parameters))


class _Shown:
    """A default as it is written: functions by their names."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text


def _default(value):
    if value is inspect.Parameter.empty:
        return value
    text = getattr(value, "__name__", None) if callable(value) else repr(value)
    return _Shown(re.sub(r" at 0x[0-9a-f]+", "", text or type(value).__name__).replace("<lambda>", "function"))


def test_the_public_interface_is_the_one_on_record():
    then, now = SNAPSHOT.read_text().splitlines(), signatures().splitlines()
    gone, new = [line for line in then if line not in now], [line for line in now if line not in then]
    assert not gone + new, "\n".join(
        ["the public interface changed:", *(f"- {line}" for line in gone), *(f"+ {line}" for line in new),
         "if that is meant, say so in CHANGELOG.md and run: python -m tests.test_public_api"]
    )  # fmt: skip


def test_the_record_has_what_users_call():
    text = SNAPSHOT.read_text()
    for line in ("run(problem, optimizer, sweep, probes=('loss',)", "curvature.hessian(objective, params)"):
        assert line in text
    assert len(text.splitlines()) == sum(len(module.__all__) for module in MODULES.values())


if __name__ == "__main__":
    SNAPSHOT.write_text(signatures())
    sys.stdout.write(f"{SNAPSHOT}: {len(SNAPSHOT.read_text().splitlines())} names\n")
