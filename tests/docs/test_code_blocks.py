"""Every code block of the documentation that pytest does not run as a doctest is read by what it is meant for."""

import ast
import inspect
import re
import shlex
import tomllib

import optax
import pytest
import tyro

import lossland as ll
from lossland.cli import Command
from lossland.problems import NAMES
from lossland.reproductions import NAMES as TARGETS
from tests.docs.pages import ALL_BLOCKS, DOCS, READABLE, ROOT, blocks

EXECUTED_OR_READ = {"python", "bash", "yaml", "text", ""}
DIRECTIVES = {"toctree", "eval-rst", "include"}
TOOLS = {"lossland", "python", "python3", "pip", "pytest", "cp", "dask", "kubectl", "gcloud", "srun", "if", "exit"}
COMMAND = re.compile(
    r"(?:^|[ /])lossland ((?:map|plan|explain|reproduce|report|status|verify|doctor|selfcheck)\b[^\n]*)"
)


def lines(block):
    """Command lines of a block, continuations joined, comments left out."""
    joined = block.text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def commands():
    for block in ALL_BLOCKS:
        if block.language in ("bash", "yaml", "console", ""):
            for line in lines(block):
                for found in COMMAND.finditer(line):
                    text = found[1]
                    for quote in "\"'":  # one that was opened before the command ends it
                        text = text.rpartition(quote)[0] if text.count(quote) % 2 else text
                    words = shlex.split(text, comments=True)
                    yield pytest.param(words, id=f"{block.where} {' '.join(words[:2])}")


@pytest.mark.parametrize("words", list(commands()))
def test_command_lines_are_read_by_the_parser(words):
    parsed = tyro.cli(Command, prog="lossland", args=words, config=(tyro.conf.OmitArgPrefixes,))
    if hasattr(parsed, "problem"):
        assert parsed.problem in NAMES
        assert callable(getattr(optax, parsed.optimizer))
    if getattr(parsed, "name", None) is not None:
        assert parsed.name in TARGETS


def test_a_wrong_option_would_be_noticed():
    with pytest.raises(SystemExit):
        tyro.cli(Command, prog="lossland", args=["map", "digits", "--sedes", "3"], config=(tyro.conf.OmitArgPrefixes,))


@pytest.mark.parametrize("path", READABLE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_of_a_kind_that_is_checked(path):
    for block in blocks(path):
        assert block.language in EXECUTED_OR_READ | DIRECTIVES, f"{block.where}: a block of {block.language!r}"
        if block.language == "bash":
            for line in lines(block):
                tool = shlex.split(line, comments=True)[0].removeprefix(".venv/bin/").partition("=")[0]
                assert tool in TOOLS | {"code"}, f"{block.where}: {tool!r} is no command that these pages explain"


SHOWN = [block for block in ALL_BLOCKS if block.language == "python" and ">>>" not in block.text]


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.where)
def test_python_that_needs_a_cluster_or_a_trained_model_calls_what_there_is(block):
    """These cannot run here: they are parsed, and every call of the library fits the signature of what it calls."""
    calls = [node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Call)]
    for call in calls:
        if (
            isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
            and call.func.value.id == "ll"
        ):
            signature = inspect.signature(getattr(ll, call.func.attr))
            signature.bind(*call.args, **{keyword.arg: None for keyword in call.keywords})


def test_extras_that_pages_install_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        extra
        for path in READABLE
        for found in re.finditer(r"(?:lossland|-e '?\.)\[([\w,]+)\]", path.read_text())
        for extra in found[1].split(",")
    }
    assert {"data", "cluster"} <= named <= set(project["optional-dependencies"])


def test_links_of_pages_lead_somewhere():
    for path in READABLE:
        for target in re.findall(r"\]\(((?!http)[^)#`\s]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def test_pictures_are_small_and_described():
    for picture in (DOCS / "images").glob("*.png"):
        assert picture.stat().st_size < 200_000, picture.name
    for path in READABLE:
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", path.read_text()):
            assert len(text) > 10, f"{path.relative_to(ROOT)}: {target} has no description for those who do not see it"
