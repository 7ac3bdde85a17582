"""Imports point down only, and nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lossland"
FLOORS = [
    {"problems", "optimizers", "thresholds", "curvature", "strict_json", "arguments"},
    {"sweeps", "landscapes"},
    {"stability"},
    {"diagnosis"},
    {"figures"},
    {"mapping", "explaining", "reproductions", "report", "selfcheck"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide the room they come from"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        rooms |= {name.split(".")[1] for name in names if name.startswith("lossland.")}
    return {room for room in rooms if room in LEVEL}


def test_every_room_has_a_floor():
    assert {room_of(path) for path in MODULES} - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room_of(path) != "__init__"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_down(path):
    own = room_of(path)
    # The command line is the face of the whole house, so it may use the package's own front door.
    upward = {room for room in imported_rooms(path) if room != own and LEVEL[room] > LEVEL[own]}
    assert not upward, f"{path.name} on floor {LEVEL[own]} imports {sorted(upward)} from above"


def test_matplotlib_is_imported_by_figures_alone():
    for path in MODULES:
        if room_of(path) != "figures":
            assert "matplotlib" not in {
                alias.name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import)
                for alias in node.names
            }, path


def test_importing_the_package_pulls_in_nothing_heavy():
    code = (
        "import sys, lossland; print(sorted({'jax','flax','matplotlib','xarray','optax','sklearn'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_help_imports_no_jax():
    code = (
        "import sys\nfrom lossland.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('jax' in sys.modules or 'numpy' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert "map" in done.stdout
    assert done.stderr.strip().endswith("False")
