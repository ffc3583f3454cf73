"""What keeps the hardware busy: devices side by side, programs kept on disk, bounded memory."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
from jax._src.compilation_cache import compress_executable
from synthetic import babble, write_corpus

import featurestore as fs
from featurestore import egemaps, pipeline
from featurestore.arithmetic import in_precision
from featurestore.compilation import _Kept
from featurestore.errors import FeatureStoreError
from featurestore.setup import IngestConfig

POOLED = IngestConfig(views=("gcu",), frames=False, certified=0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    durations = [0.3 + 0.17 * (index % 9) for index in range(18)]
    write_corpus(folder, durations=durations).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def run(script: str, *arguments: object, **environment: str) -> str:
    """Standard output of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


INGEST = """
    import sys
    import jax
    import featurestore as fs
    from featurestore.setup import IngestConfig

    events = []
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
    config = IngestConfig(views=("gcu", "mfcc"), column_frames=4096)
    done = fs.ingest(sys.argv[1], sys.argv[2], encoder="random:0", config=config)
    assert done.utterances == 18
    count = lambda what: sum(name.endswith(what) for name in events)
    print(jax.local_device_count(), count("cache_hits"), count("cache_misses"))
"""


def arrays(store: Path) -> dict[str, bytes]:
    """Every object of every part, by name."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.glob("views/*/parts/*.zarr/**/*"))
        if path.is_file()
    }


@pytest.mark.long
def test_several_devices_give_the_same_store_to_the_bit(manifest: Path, tmp_path: Path) -> None:
    found = {}
    for devices in (1, 3):
        flags = f"--xla_force_host_platform_device_count={devices}"
        store = tmp_path / str(devices)
        said = run(INGEST, manifest, store, XLA_FLAGS=flags, FEATURESTORE_HOME=str(tmp_path))
        assert said.split()[0] == str(devices)
        found[devices] = arrays(store)
    assert found[1] == found[3]


def test_a_second_run_compiles_nothing(manifest: Path, tmp_path: Path) -> None:
    home = {"FEATURESTORE_HOME": str(tmp_path / "home")}
    _, hits, misses = run(INGEST, manifest, tmp_path / "first", **home).split()
    assert int(misses) > 0
    assert int(hits) == 0
    _, hits_again, misses_again = run(INGEST, manifest, tmp_path / "second", **home).split()
    assert int(misses_again) == 0
    assert int(hits_again) == int(misses)
    assert arrays(tmp_path / "first") == arrays(tmp_path / "second")


def test_a_home_that_cannot_be_written_stops_nobody(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    said = run(INGEST, manifest, tmp_path / "store", FEATURESTORE_HOME=str(tmp_path / "file"))
    assert said.split()[1:] == ["0", "0"]


def test_what_a_killed_process_leaves_is_not_a_program(manifest: Path, tmp_path: Path) -> None:
    """Whole files are moved to where programs are kept; nothing is ever written there."""
    home = tmp_path / "home"
    run(INGEST, manifest, tmp_path / "first", FEATURESTORE_HOME=str(home))
    (folder,) = (home / "compiled").iterdir()
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert all(name.endswith("-cache") for name in kept)
    victim = min(kept)
    (folder / f".{victim}.1").write_bytes(kept[victim][:100])  # as a kill leaves it
    (folder / victim).unlink()
    said = run(INGEST, manifest, tmp_path / "second", FEATURESTORE_HOME=str(home))
    assert said.split()[2] == "1"
    assert {path.name for path in folder.glob("*-cache")} == set(kept)


def test_what_a_full_disk_left_of_a_program_is_not_kept(tmp_path: Path) -> None:
    kept = _Kept(tmp_path)
    whole = compress_executable(b"1234a program")
    (kept.folder / "whole-cache").write_bytes(whole)
    (kept.folder / "half-cache").write_bytes(whole[:-3])
    kept.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["whole-cache"]
    assert [path.name for path in kept.folder.iterdir()] == ["whole-cache"]
    assert (kept.folder / "whole-cache").read_bytes() == whole


def test_a_full_disk_where_programs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, goal: Path) -> None:
        goal.write_bytes(b"")
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = _Kept(tmp_path)
    (kept.folder / "one-cache").write_bytes(compress_executable(b"1234a program"))
    monkeypatch.setattr("featurestore.compilation.shutil.copyfile", full)
    kept.publish()
    assert not list(tmp_path.iterdir())


MEMORY = """
    import resource, sys
    from pathlib import Path
    import pandas as pd
    import featurestore as fs
    from featurestore.batching import BatchPolicy
    from featurestore.planning import plan_ingest
    from featurestore.setup import IngestConfig

    def status(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(one.split()[1]) for one in lines if one.startswith(name)) * 1024

    base = pd.read_csv(sys.argv[1])
    frames = sys.argv[3] == "frames"
    # One shape for both sizes: compiling is not part of the formula, and a shape is not free.
    config = IngestConfig(views=("gcu",), frames=frames, column_frames=4096, certified=0,
                          batching=BatchPolicy(2048, compile_cost=10**9, batch_cost=10**9))
    encoder = fs.load_encoder("random:0")

    def corpus(times):
        return pd.concat([base.assign(id=base["id"] + f"-{k}") for k in range(times)])

    fs.ingest(corpus(30), sys.argv[2] + "/warm", encoder=encoder, config=config)
    for times in (30, 300):
        store = f"{sys.argv[2]}/{times}"
        plan = plan_ingest(corpus(times), store, encoder=encoder, config=config)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        done = fs.ingest(corpus(times), store, encoder=encoder, config=config)
        assert done.utterances == 18 * times
        print(status("VmHWM") - before, plan.memory_bytes, plan.columns)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its peak")
@pytest.mark.parametrize("kept", ["frames", "pooled"])
def test_peak_memory_is_within_the_formula_whatever_the_corpus(
    manifest: Path, tmp_path: Path, kept: str
) -> None:
    said = run(MEMORY, manifest, tmp_path, kept)
    rows = [[int(value) for value in line.split()] for line in said.splitlines()]
    (small, planned, few), (large, planned_again, many) = rows
    assert planned_again < 1.05 * planned, "the formula knows nothing of the corpus"
    assert many >= 8 * few
    assert small <= planned
    assert large <= planned_again


GROWTH = """
    import os, sys, threading
    import pandas as pd
    import featurestore as fs
    from featurestore.ingest import run_plan
    from featurestore.planning import plan_ingest
    from featurestore.setup import IngestConfig
    from contextlib import contextmanager

    count = int(sys.argv[3])
    table = pd.DataFrame({"id": [f"u{i}" for i in range(count)], "path": sys.argv[1],
                          "speaker": "s", "start": [0.001 * (i % 800) for i in range(count)]})
    table["end"] = table["start"] + 0.1
    seen = []

    def look(amount):
        seen.append((len(os.listdir("/proc/self/fd")), threading.active_count()))

    @contextmanager
    def bar(*args, **kwargs):
        yield look

    sys.modules["featurestore.ingest"].progress_bar = bar
    config = IngestConfig(views=("gcu",), frames=False, column_frames=4096, certified=0)
    done = fs.ingest(table, sys.argv[2], encoder="random:0", config=config)
    assert done.utterances == count
    half = len(seen) // 2
    early, late = seen[len(seen) // 10 : half], seen[half:]
    # Decoders and writers have some open at a look; what stays open is what never goes below.
    print(*(min(one[i] for one in part) for i in (0, 1) for part in (early, late)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_neither_files_nor_threads_pile_up(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", babble(1.0), 16_000)
    said = run(GROWTH, tmp_path / "long.wav", tmp_path / "store", 20_000)
    files, files_later, threads, threads_later = map(int, said.split())
    assert files_later <= files + 2  # one left open per column would be 8 more
    assert threads_later <= threads + 2


def test_opensmile_works_beside_the_network(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither waits for the other: here each waits until the other has begun."""
    pytest.importorskip("opensmile")
    import threading

    begun = {"network": threading.Event(), "egemaps": threading.Event()}

    def meeting(name: str, other: str, original):
        def run_both(work, **options):
            begun[name].set()
            assert begun[other].wait(60), f"{name} runs alone"
            return original(work, **options)

        return run_both

    module = importlib.import_module("featurestore.ingest")  # the package has a function
    network = meeting("network", "egemaps", pipeline.run_network)
    smile = meeting("egemaps", "network", pipeline.run_egemaps)
    monkeypatch.setattr(module, "run_network", network)
    monkeypatch.setattr(module, "run_egemaps", smile)
    config = IngestConfig(views=("gcu", "egemaps"), frames=False, certified=0)
    done = fs.ingest(manifest, tmp_path / "store", encoder="random:0", config=config)
    assert done.utterances == 18
    assert fs.verify(tmp_path / "store").sound


@pytest.mark.parametrize("broken", ["run_network", "run_egemaps"])
def test_if_one_of_them_fails_the_other_ends_and_nothing_is_lost(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    pytest.importorskip("opensmile")
    module = importlib.import_module("featurestore.ingest")  # the package has a function
    config = IngestConfig(views=("gcu", "egemaps"), frames=False, column_frames=4096, certified=0)

    def fail(work, **options):
        raise FeatureStoreError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(module, broken, fail)
        with pytest.raises(FeatureStoreError, match="out of order"):
            fs.ingest(manifest, tmp_path / "store", encoder="random:0", config=config)
    fs.ingest(manifest, tmp_path / "store", encoder="random:0", config=config)
    assert fs.verify(tmp_path / "store").sound
    opened = fs.open_store(tmp_path / "store")
    assert opened.pooled("gcu").sizes["utterance"] == 18
    assert opened.features("egemaps").sizes["utterance"] == 18


def test_openSMILE_leaves_the_cores_to_the_network() -> None:  # noqa: N802
    if not hasattr(os, "nice"):
        pytest.skip("no priorities here")
    said = run("import os; from featurestore import egemaps; egemaps._step_back(); "
               "egemaps._step_back(); print(os.nice(0))")  # fmt: skip
    assert int(said) == os.nice(0) + egemaps._NICENESS


# Largest absolute difference of the pooled statistics to float32, with about a factor of two.
ARITHMETIC = {"winograd": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}


@pytest.mark.parametrize("precision", ARITHMETIC)
def test_other_arithmetic_is_a_view_of_its_own_and_close(
    manifest: Path, tmp_path: Path, precision: str
) -> None:
    store = tmp_path / "store"
    made = [
        fs.ingest(
            manifest,
            store,
            encoder="random:0",
            config=IngestConfig(views=("gcu",), precision=chosen),
        ).views[0]
        for chosen in ("parity", precision)
    ]
    opened = fs.open_store(store)
    assert [opened.config(view).precision for view in made] == ["float32", precision]
    exact, other = (opened.pooled(view)["gate"].to_numpy() for view in made)
    difference = np.abs(exact - other).max()
    assert 0 < difference < ARITHMETIC[precision]
    for one in fs.recompute(store, 5, encoder="random:0"):  # alone, as in company
        assert one.differences.largest <= 1e-5 if precision == "winograd" else 1e-3


def test_fast_is_winograd_on_a_cpu(manifest: Path, tmp_path: Path) -> None:
    views = [
        fs.ingest(
            manifest,
            tmp_path / "store",
            encoder="random:0",
            config=IngestConfig(views=("gcu",), frames=False, precision=precision),
        ).views
        for precision in ("fast", "winograd")
    ]
    assert views[0] == views[1]


def test_a_network_without_other_arithmetic_says_so() -> None:
    class Plain:
        name = "plain"

    assert in_precision(Plain(), "fast").name == "plain"
    with pytest.raises(FeatureStoreError, match="no precision but float32"):
        in_precision(Plain(), "bfloat16")
    with pytest.raises(FeatureStoreError, match="unknown precision 'half'; accepted: parity"):
        IngestConfig(precision="half")
