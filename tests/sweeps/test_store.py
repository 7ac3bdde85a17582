"""Files: what is written is read back bit for bit, or refused by name; nothing good is ever lost."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lossland.sweeps.store import DamagedTileError, OccupiedError, StorageError, Store
from lossland.sweeps.verification import describe, is_sound, verify
from tests.sweeps.synthetic import IDENTITY, PER_TILE, layout_of, results_of, sweep_of_size, tile_results

SWEEP = sweep_of_size()


def new_store(folder: Path, **identity) -> Store:
    return Store.create(folder, {**IDENTITY, **identity}, layout_of(SWEEP), PER_TILE)


def filled_store(folder: Path) -> Store:
    store = new_store(folder)
    for tile in range(store.num_tiles):
        store.write(tile, tile_results(SWEEP, tile))
    return store


def assert_same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(one) == set(other)
    for name, values in one.items():
        assert values.dtype == other[name].dtype
        assert values.shape == other[name].shape
        assert values.tobytes() == np.asarray(other[name], order="C").tobytes()


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestTiles:
    def test_what_is_written_is_read(self, tmp_path):
        store = new_store(tmp_path)
        assert store.read(1) is None
        store.write(1, tile_results(SWEEP, 1))
        assert_same_arrays(store.read(1), tile_results(SWEEP, 1))
        assert set(store.read(1, ["loss"])) == {"loss"}
        assert store.done() == [1]

    def test_the_same_arrays_give_the_same_bytes(self, tmp_path):
        one, other = filled_store(tmp_path / "one"), filled_store(tmp_path / "other")
        assert one.path(2).read_bytes() == other.path(2).read_bytes()

    def test_numpy_opens_a_tile(self, tmp_path):
        store = filled_store(tmp_path)
        with np.load(store.path(0), allow_pickle=False) as file:
            np.testing.assert_array_equal(file["loss"], tile_results(SWEEP, 0)["loss"])

    def test_any_flipped_bit_is_refused_or_harmless(self, tmp_path):
        store = filled_store(tmp_path)
        whole, expected = store.path(0).read_bytes(), tile_results(SWEEP, 0)
        rng = np.random.default_rng(0)
        edges = np.concatenate([np.arange(120), np.arange(len(whole) - 120, len(whole))])  # headers, table of contents
        refused = 0
        places = np.concatenate([edges, rng.choice(len(whole), 600, replace=False)])
        for place in places:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            store.path(0).write_bytes(damaged)
            try:
                found = store.read(0)
            except DamagedTileError:
                refused += 1
                continue
            assert found is not None
            assert_same_arrays(found, expected)
        assert refused > len(places) / 2

    def test_damage_that_a_crc_accepts_is_refused(self, tmp_path):
        """Rewriting a member gives it a right CRC-32; the SHA-256 in the mark tells it apart."""
        store = filled_store(tmp_path)
        with zipfile.ZipFile(store.path(0)) as file:
            members = {name: bytearray(file.read(name)) for name in file.namelist()}
        members["loss.npy"][-1] ^= 1
        with zipfile.ZipFile(store.path(0), "w") as file:
            for name, content in members.items():
                file.writestr(name, bytes(content))
        with pytest.raises(DamagedTileError, match="SHA-256 of 'loss'"):
            store.read(0)
        assert store.read(0, ["peak_loss"]) is not None

    @pytest.mark.parametrize("length", [0, 1, 21, 500, -1, -22])
    def test_truncated(self, tmp_path, length):
        store = filled_store(tmp_path)
        store.path(0).write_bytes(store.path(0).read_bytes()[:length])
        with pytest.raises(DamagedTileError, match="set aside"):
            store.read(0)

    def test_swapped_foreign_and_of_another_size(self, tmp_path):
        store, other = filled_store(tmp_path / "one"), new_store(tmp_path / "other", problem="another")
        other.write(0, tile_results(SWEEP, 0))
        sized = Store.create(tmp_path / "sized", IDENTITY, layout_of(SWEEP), PER_TILE + 1)
        sized.write(0, tile_results(SWEEP, 0))
        store.write_checkpoint(0, 3, tile_results(SWEEP, 0))
        for wrong in (store.path(1), other.path(0), sized.path(0), store.checkpoint_path(0)):
            shutil.copy(wrong, store.path(0))
            with pytest.raises(DamagedTileError, match="belongs to another"):
                store.read(0)

    def test_set_aside_deletes_nothing(self, tmp_path):
        store = new_store(tmp_path)
        for number in (1, 2, 3):
            store.path(3).write_bytes(b"bad %d" % number)
            aside = store.set_aside(3)
            assert aside.name == f"tile-000003.npz.damaged-{number}"
            assert aside.read_bytes() == b"bad %d" % number
            assert store.read(3) is None
        assert store.done() == []

    @pytest.mark.parametrize("values", [np.array([{}]), np.array(["text"]), np.zeros(2, "M8[s]"), np.zeros(2, "i4,f4")])
    def test_no_pickle(self, tmp_path, values):
        with pytest.raises(ValueError, match="thing: expected numbers"):
            new_store(tmp_path).write(0, {"thing": values})

    def test_any_name_will_do(self, tmp_path):
        store = new_store(tmp_path)
        arrays = {name: np.arange(3) for name in ("file", "args", "a/b", "['w'][0].x", "µ", "allow_pickle")}
        store.write(0, arrays)
        assert_same_arrays(store.read(0), arrays)


STATE = {
    "half": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "count": np.array(7, np.int32),
    "flags": np.array([True, False]),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 4), np.float32),
    "key": np.array([[1, 2]], np.uint32),
    "eighth": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
}


class TestCheckpoints:
    def test_bits_come_back(self, tmp_path):
        store = new_store(tmp_path)
        assert store.read_checkpoint(2) is None
        store.write_checkpoint(2, 50, {"old": np.zeros(1)})
        store.write_checkpoint(2, 100, STATE)
        step, arrays = store.read_checkpoint(2) or (None, {})
        assert step == 100
        assert_same_arrays(arrays, STATE)
        assert store.checkpoints() == [2]

    def test_a_finished_tile_drops_its_checkpoint(self, tmp_path):
        store = new_store(tmp_path)
        store.write_checkpoint(0, 5, STATE)
        left = store.checkpoint_path(0).read_bytes()
        store.write(0, tile_results(SWEEP, 0))
        assert not store.checkpoint_path(0).exists()
        store.checkpoint_path(0).write_bytes(left)  # killed between the two
        assert_same_arrays(new_store(tmp_path).read(0), tile_results(SWEEP, 0))
        assert not store.checkpoint_path(0).exists()

    @pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "tile"])
    def test_a_bad_one_costs_nothing_but_time(self, tmp_path, damage):
        store = filled_store(tmp_path / "one")
        store.write_checkpoint(0, 5, STATE)
        path = store.checkpoint_path(0)
        content = bytearray(path.read_bytes())
        if damage == "truncate":
            path.write_bytes(content[:100])
        elif damage == "flip":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif damage == "foreign":
            other = new_store(tmp_path / "other", problem="another")
            other.write_checkpoint(0, 5, STATE)
            shutil.copy(other.checkpoint_path(0), path)
        else:
            shutil.copy(store.path(0), path)
        with pytest.warns(UserWarning, match=r"checkpoint-000000\.npz.*starts anew"):
            assert store.read_checkpoint(0) is None
        assert path.with_name("checkpoint-000000.npz.damaged-1").exists()
        assert store.read_checkpoint(0) is None


class TestManifest:
    def test_resumed_with_the_tile_size_it_was_begun_with(self, tmp_path):
        new_store(tmp_path)
        assert Store.create(tmp_path, IDENTITY, layout_of(SWEEP), 7).runs_per_tile == PER_TILE

    def test_other_library_versions_are_named(self, tmp_path):
        store = filled_store(tmp_path)
        before = content_of(tmp_path)
        with pytest.raises(OccupiedError, match=r"begun with jax 1\.0, jaxlib 1\.1; this is jax 2\.0, jaxlib 2\.1"):
            new_store(tmp_path, jax="2.0", jaxlib="2.1")
        with pytest.raises(OccupiedError, match=r"another sweep.*problem: line there, cubic here"):
            new_store(tmp_path, jax="2.0", problem="cubic")
        assert content_of(tmp_path) == before
        assert store.done() == list(range(store.num_tiles))

    def test_another_format_is_named(self, tmp_path):
        filled_store(tmp_path)
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99, "written_by": "lossland 7.0"}))
        before = content_of(tmp_path)
        for act in (lambda: new_store(tmp_path), lambda: Store.open(tmp_path)):
            with pytest.raises(ValueError, match=r"format 99, written by lossland 7\.0; .*formats 1 to 2"):
                act()
        assert content_of(tmp_path) == before

    def test_damaged_manifests_are_refused(self, tmp_path):
        filled_store(tmp_path)
        path = tmp_path / "manifest.json"
        whole = path.read_bytes()
        edited = whole.replace(b'"runs_per_tile": 5', b'"runs_per_tile": 6')
        assert edited != whole
        for content in (b"", whole[:200], b"\xff\xfe", b"[]", b"3", b"{}", edited):
            path.write_bytes(content)
            before = content_of(tmp_path)
            for act in (lambda: new_store(tmp_path), lambda: Store.open(tmp_path)):
                with pytest.raises(ValueError, match=r"manifest\.json is damaged .*nothing was changed"):
                    act()
            assert content_of(tmp_path) == before

    def test_two_processes_create_one_folder(self, tmp_path):
        """Both ask for other tile sizes at the same moment; both must end with the same one."""
        script = """
        import sys, time
        from tests.sweeps.synthetic import IDENTITY, layout_of, sweep_of_size
        from pathlib import Path
        from lossland.sweeps.store import Store
        layout = layout_of(sweep_of_size())
        for number in range(40):
            while time.time() < float(sys.argv[2]) + 0.03 * number:
                pass
            store = Store.create(Path(sys.argv[1]) / str(number), IDENTITY, layout, int(sys.argv[3]))
            print(store.runs_per_tile)
        """
        start = str(time.time() + 3)
        children = [start_python(script, tmp_path, start, size) for size in (3, 4)]
        sizes = [child.communicate() for child in children]
        assert [child.returncode for child in children] == [0, 0], sizes
        assert sizes[0][0] == sizes[1][0]
        assert not list(tmp_path.glob("*/.*"))

    def test_leftovers_of_the_dead_are_removed_and_of_the_living_kept(self, tmp_path):
        script = """
        import os, sys
        from pathlib import Path
        from lossland.sweeps import archive
        os.replace = lambda *paths: os.kill(os.getpid(), 9)
        archive.write_whole(Path(sys.argv[1]) / "tile-000001.npz", b"half")
        """
        new_store(tmp_path)
        child = start_python(script, tmp_path)
        child.communicate()
        assert child.returncode == -9
        dead = list(tmp_path.glob(".*.tmp"))
        assert len(dead) == 1
        mine = dead[0].with_name(dead[0].name.replace(f".{child.pid}.", f".{os.getpid()}."))
        mine.write_bytes(b"writing")
        store = new_store(tmp_path)
        assert not dead[0].exists()
        assert mine.exists()
        assert store.done() == []


def start_python(script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
    )


def run_python(script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> str:
    child = start_python(script, *arguments, prefix=prefix)
    out, errors = child.communicate(timeout=100)
    assert child.returncode == 0, out + errors
    return out


def own_mounts() -> tuple[str, ...] | None:
    """Prefix of a command that may mount file systems, seen by nobody else and gone when it ends."""
    for prefix in (("unshare", "-m"), ("unshare", "-rm")):
        try:
            subprocess.run([*prefix, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return prefix
    return None


FULL_DISK = """
import os, resource, signal, subprocess, sys
from pathlib import Path
import numpy as np
from lossland.sweeps.store import StorageError, Store
from tests.sweeps.synthetic import IDENTITY, PER_TILE, layout_of, sweep_of_size, tile_results

kind, folder = sys.argv[1], Path(sys.argv[2])
sweep = sweep_of_size()
if kind == "mount":
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
else:  # no file may grow past this: the nearest thing to a full disk that needs no privilege
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
out = folder / "runs"
store = Store.create(out, IDENTITY, layout_of(sweep), PER_TILE)
store.write(0, tile_results(sweep, 0))
store.write(1, tile_results(sweep, 1))
before = {path.name: path.read_bytes() for path in out.iterdir()}
big = {"loss": np.zeros(10**6, np.float32)}
for write in (lambda: store.write(2, big), lambda: store.write(1, big), lambda: store.write_checkpoint(3, 5, big)):
    try:
        write()
    except StorageError as error:
        print(error, error.errno)
    else:
        raise AssertionError("it was written")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before  # temporaries gone, nothing overwritten
store.write(2, tile_results(sweep, 2))
assert Store.open(out).done() == [0, 1, 2]
"""

READ_ONLY = """
import os, subprocess, sys
from pathlib import Path
from lossland.sweeps.store import StorageError, Store
from tests.sweeps.synthetic import IDENTITY, PER_TILE, layout_of, sweep_of_size, tile_results

kind, folder = sys.argv[1], Path(sys.argv[2])
sweep = sweep_of_size()
out = folder / "runs"
if kind == "mount":
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
store = Store.create(out, IDENTITY, layout_of(sweep), PER_TILE)
store.write(0, tile_results(sweep, 0))
store.read(0)  # imports what reading needs, which another user might not see
if kind == "mount":
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
else:
    for path in (folder, out):
        path.chmod(0o555)
    if os.getuid() == 0:  # whom permissions do not bind
        os.setuid(65534)
before = sorted(path.name for path in out.iterdir())
again = Store.create(out, IDENTITY, layout_of(sweep), PER_TILE)  # a finished sweep is read from there
assert again.read(0) is not None
for write in (
    lambda: store.write(1, tile_results(sweep, 1)),
    lambda: store.set_aside(0),
    lambda: Store.create(folder / "new", IDENTITY, layout_of(sweep), PER_TILE),
):
    try:
        write()
    except StorageError as error:
        print(error)
    else:
        raise AssertionError("it was written")
assert sorted(path.name for path in out.iterdir()) == before
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits and permissions")
class TestStorage:
    """Real processes on real small, read-only and forbidden folders."""

    @pytest.mark.parametrize("kind", ["mount", "limit"])
    def test_a_full_disk(self, tmp_path, kind):
        prefix = own_mounts() if kind == "mount" else None
        kind = kind if prefix else "limit"
        said = run_python(FULL_DISK, kind, tmp_path, prefix=prefix or ()).splitlines()
        assert len(said) == 3
        for line in said:
            assert "2 of 5 tiles are safe" in line
            assert "the same call" in line
            assert ("the disk is full (0" in line and "4 MB needed" in line) if kind == "mount" else "4 MB" in line
            assert line.endswith(str(errno.ENOSPC if kind == "mount" else errno.EFBIG))

    @pytest.mark.parametrize("kind", ["mount", "chmod"])
    def test_a_read_only_folder(self, kind):
        prefix = own_mounts() if kind == "mount" else None
        kind = kind if prefix else "chmod"
        with tempfile.TemporaryDirectory() as folder:
            said = run_python(READ_ONLY, kind, folder, prefix=prefix or ()).splitlines()
            for path in (Path(folder), Path(folder) / "runs"):
                if path.exists():
                    path.chmod(0o755)
        assert len(said) == 3
        for line in said:
            assert ("read-only file system" if kind == "mount" else "no permission to write") in line
        assert all("1 of 5 tiles are safe" in line for line in said[:2])

    def test_a_quota(self, tmp_path, monkeypatch):
        store = filled_store(tmp_path)

        def fsync(_):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match=r"quota is used up.*5 of 5 tiles are safe") as error:
            store.write(0, tile_results(SWEEP, 0))
        assert error.value.errno == errno.EDQUOT
        assert is_sound(verify(tmp_path))
        assert not list(tmp_path.glob(".*"))

    def test_the_folder_is_deleted_during_the_run(self, tmp_path):
        store = new_store(tmp_path / "runs")
        shutil.rmtree(tmp_path / "runs")
        with pytest.raises(StorageError, match=r"is gone.*0 of 5 tiles are there"):
            store.write(0, tile_results(SWEEP, 0))
        assert not (tmp_path / "runs").exists()

    def test_a_file_where_the_folder_should_be(self, tmp_path):
        (tmp_path / "runs").write_text("precious")
        with pytest.raises(StorageError, match=r"runs: "):
            new_store(tmp_path / "runs")
        assert (tmp_path / "runs").read_text() == "precious"


class TestVerification:
    def test_every_kind_is_found(self, tmp_path):
        store = new_store(tmp_path)
        for tile in (0, 1, 3):
            store.write(tile, tile_results(SWEEP, tile))
        assert is_sound(verify(tmp_path))
        store.write_checkpoint(2, 8, STATE)
        store.write_checkpoint(4, 8, STATE)
        store.checkpoint_path(4).write_bytes(b"short")
        store.path(1).write_bytes(store.path(0).read_bytes())
        (tmp_path / "tile-000003.npz.damaged-1").write_bytes(b"bad")
        (tmp_path / "tile-000099.npz").write_bytes(b"?")
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / ".tile-000002.npz.1.tmp").write_bytes(b"half")
        before = content_of(tmp_path)
        findings = verify(tmp_path)
        assert content_of(tmp_path) == before
        assert [finding.kind for finding in findings[:5]] == ["ok", "damaged", "missing", "ok", "missing"]
        kinds = {finding.path.name: finding.kind for finding in findings[5:]}
        assert kinds == {
            "checkpoint-000002.npz": "checkpoint",
            "checkpoint-000004.npz": "damaged",
            "tile-000003.npz.damaged-1": "set aside",
            "tile-000099.npz": "unknown",
            "notes.txt": "unknown",
            ".tile-000002.npz.1.tmp": "left over",
        }
        assert not is_sound(findings)
        text = describe(findings)
        assert "damaged: tile-000001.npz (it belongs to another sweep" in text
        assert "checkpoint: checkpoint-000002.npz (step 8)" in text

    def test_no_sweep(self, tmp_path):
        with pytest.raises(ValueError, match="holds no lossland sweep"):
            verify(tmp_path)


def test_errors_travel_between_processes():
    for error in (StorageError("full"), DamagedTileError("bad")):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_results_of_tiles_are_those_of_runs():
    everything = results_of(SWEEP)
    for tile, place in enumerate(SWEEP.tiles(PER_TILE)):
        assert_same_arrays(tile_results(SWEEP, tile), {name: values[place] for name, values in everything.items()})
