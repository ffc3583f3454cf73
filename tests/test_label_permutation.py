"""Ridge from sums against scikit-learn, and permuted labels."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from fake_store import FakeStore, coords_of, gcu_view
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore.analysis import label_permutation
from featurestore.analysis.held_out_ridge import HeldOut, hold_out_each
from featurestore.analysis.label_permutation import permutation_test
from featurestore.analysis.permutation import permuted
from featurestore.analysis.scores import concordance
from featurestore.analysis.sums import Sums, group_sums, group_triangles
from featurestore.errors import AnalysisError
from featurestore.kernels.cross_products import Centre, cross_products

HERE = (Path(__file__).parents[1], Path(__file__).parent)


def data(count: int = 120, width: int = 14, groups: int = 5) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    who = np.sort(rng.integers(0, groups, count))
    Y = rng.normal(3, 1, (count, 2))
    X = rng.normal(size=(count, width)) * np.logspace(-3, 3, width) + 5
    X += 0.5 * Y[:, :1] * np.logspace(-3, 3, width) + who[:, None] * 0.2
    X[:, 4] = 0.1  # a constant unit
    return X.astype(np.float32), Y, who


def held(X: np.ndarray, Y: np.ndarray, who: np.ndarray, penalties: list[float]) -> HeldOut:
    lazy = da.from_array(X, chunks=(17, -1))
    y = Y - Y.mean(axis=0)
    groups = int(who.max()) + 1
    sums = group_sums(lazy, y=y, codes=who, groups=groups)

    def triangles() -> list[np.ndarray]:
        return group_triangles(lazy, y=y, codes=who, groups=groups, centre=sums.centre)

    return hold_out_each(sums, penalties=np.array(penalties), triangles=triangles)


def oracle(
    model: object, X: np.ndarray, y: np.ndarray, who: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    predicted = cross_val_predict(model, X.astype(np.float64), y, groups=who, cv=LeaveOneGroupOut())
    return np.array([np.mean((predicted - y)[who == g] ** 2) for g in np.unique(who)]), predicted


@pytest.mark.parametrize("width", [14, 200], ids=["more utterances", "more features"])
def test_every_fold_and_penalty_is_scikit_learns(width: int) -> None:
    X, Y, who = data(width=width)
    found = held(X, Y, who, [1.0, 30.0, 1e4])
    for row, penalty in enumerate((1.0, 30.0, 1e4)):
        for target in range(2):
            y = Y[:, target]
            mse, predicted = oracle(make_pipeline(StandardScaler(), Ridge(penalty)), X, y, who)
            np.testing.assert_allclose(found.mse[:, row, target], mse, rtol=1e-8)
            pooled = found.pooled()
            assert pooled["mse"][row, target] == pytest.approx(
                np.mean((predicted - y) ** 2), rel=1e-8
            )
            assert pooled["ccc"][row, target] == pytest.approx(
                concordance(y, predicted=predicted), rel=1e-8
            )
            r2 = 1 - np.mean((predicted - y) ** 2) / y.var()
            assert pooled["r2"][row, target] == pytest.approx(r2, rel=1e-7)


def test_least_squares_is_scikit_learns() -> None:
    X, Y, who = data()
    found = held(X, Y, who, [0.0])
    mse, _ = oracle(LinearRegression(), X[:, np.arange(14) != 4], Y[:, 0], who)
    np.testing.assert_allclose(found.mse[:, 0, 0], mse, rtol=1e-8)
    with pytest.raises(AnalysisError, match="needs more than"):
        held(*data(width=200), [0.0])


def test_features_that_nearly_follow_each_other_are_solved_by_qr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=(200, 4))
    X = np.concatenate([base, base + 3e-6 * rng.normal(size=(200, 4))], axis=1)
    X = X.astype(np.float32)  # whose differences keep few digits, but the same on both sides
    y = (X[:, 0] - X[:, 4]).astype(np.float64) * 1e5 + rng.normal(size=200)
    who = np.repeat(np.arange(4), 50)
    calls = []
    import featurestore.analysis.held_out_ridge as module

    original = module._Fold._by_qr
    monkeypatch.setattr(
        module._Fold, "_by_qr", lambda self, penalty: (calls.append(1), original(self, penalty))[1]
    )
    found = held(X, y[:, None], who, [0.0])
    assert len(calls) == 4
    mse, _ = oracle(make_pipeline(StandardScaler(), LinearRegression()), X, y, who)
    np.testing.assert_allclose(found.mse[:, 0, 0], mse, rtol=1e-7)


@pytest.mark.parametrize("width", [6, 80])
@pytest.mark.parametrize("value", [0.0, 1e-3, 0.3, 1.0])
def test_a_unit_that_is_dead_in_all_but_one_speaker_is_scikit_learns(
    value: float, width: int
) -> None:
    rng = np.random.default_rng(4)
    who = np.repeat(np.arange(5), 20)
    X = rng.normal(size=(100, width)).astype(np.float32)
    Y = rng.normal(size=(100, 2)) + X[:, :2]
    X[:, 3] = np.where(who == 2, rng.normal(value + 1, 1, 100), value)
    X[:, 4] = np.where(who == 2, X[:, 4], np.float32(value + 1) + 1e-6 * X[:, 4])  # nearly dead
    penalties = [1.0, 1000.0]
    found = held(X, Y, who, penalties)
    for row, penalty in enumerate(penalties):
        for target in range(2):
            model = make_pipeline(StandardScaler(), Ridge(penalty, solver="svd"))
            mse, _ = oracle(model, X, Y[:, target], who)
            # Of the nearly dead unit, the mean of 32-bit values is what all else depends on.
            np.testing.assert_allclose(found.mse[:, row, target], mse, rtol=1e-6)


def test_sums_are_those_of_the_kernel_in_any_blocks_and_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, Y, who = data()
    who = np.where(np.arange(len(who)) % 7 == 0, -1, who)  # some rows are left out
    whole = group_sums(da.from_array(X, chunks=-1), y=Y, codes=who, groups=5)
    monkeypatch.setattr("featurestore.analysis.streams._workers", lambda: 3)
    parts = group_sums(da.from_array(X, chunks=(11, 5)), y=Y, codes=who, groups=5)
    kernel = cross_products(
        X, Y, np.where(who < 0, 5, who), n_groups=5, centre=Centre(whole.centre, np.zeros(2))
    )
    for found in (whole, parts.about(whole.centre)):
        np.testing.assert_array_equal(found.n, kernel.n)
        for name in ("x", "y", "xy"):
            expected = np.asarray(getattr(kernel, name))
            np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9, atol=1e-7)
        upper = np.triu_indices(14)
        np.testing.assert_allclose(
            found.xx[:, *upper], np.asarray(kernel.xx)[:, *upper], rtol=1e-9, atol=1e-6
        )
    triangles = group_triangles(
        da.from_array(X, chunks=(11, 5)), y=Y, codes=who, groups=5, centre=whole.centre
    )
    for group, triangle in enumerate(triangles):
        product = (triangle.T @ triangle)[1:15, 1:15]
        np.testing.assert_allclose(np.triu(product), np.triu(whole.xx[group]), rtol=1e-8, atol=1e-7)


def test_a_run_without_rows_adds_nothing() -> None:
    X, Y, who = data()
    some = group_sums(da.from_array(X, chunks=17), y=Y, codes=who, groups=5)
    none = group_sums(da.from_array(X, chunks=17), y=Y, codes=who * 0 - 1, groups=5)
    assert isinstance(none + some, Sums)
    np.testing.assert_array_equal((none + some).xx, some.xx)
    np.testing.assert_array_equal((some + none).xx, some.xx)


def store(*, signal: float, count: int = 150, layers: int = 3, units: int = 5) -> FakeStore:
    rng = np.random.default_rng(2)
    who = np.arange(count) % 6
    arousal = rng.normal(3, 1, count) + 0.3 * who
    valence = rng.normal(3, 1, count)
    valence[::9] = np.nan
    mean = rng.normal(size=(count, layers, units))
    mean[:, 1, 1] += signal * arousal
    labels = {"arousal": arousal, "valence": valence}
    coords = coords_of(count, speakers=[f"s{i}" for i in who], labels=labels)
    return FakeStore(pooled={"gcu-1": gcu_view(mean, coords, chunk=29)})


def test_a_signal_is_told_from_none() -> None:
    found = permutation_test(store(signal=0.7), permutations=99, penalties=[1, 100]).set_index(
        ["target", "measure"]
    )
    for measure in ("mse", "ccc", "r2"):
        assert found.loc[("arousal", measure), "p"] == 0.01
        assert found.loc[("valence", measure), "p"] > 0.05
        row = found.loc[("valence", measure)]
        assert row["null_low"] <= row["null_mean"] <= row["null_high"]
    assert found.loc[("arousal", "ccc"), "observed"] > 0.3
    assert (found["permutations"] == 99).all()


def test_the_null_is_that_of_a_loop_over_permutations() -> None:
    one = store(signal=0.3)
    penalties = [1.0, 50.0]
    found = permutation_test(one, targets="arousal", penalties=penalties, permutations=6, seed=4)
    X = one.pooled("gcu")["gate"].sel(statistic="mean").to_numpy().reshape(150, -1)
    y, who = one.pooled("gcu")["arousal"].to_numpy(), np.arange(150) % 6
    level = np.array([y[who == g].mean() for g in range(6)])[who]
    shuffled = permuted(y, who, 6, [4, 0]) + level[:, None]
    for g in range(6):  # the same labels in another order, for every speaker
        np.testing.assert_allclose(
            np.sort(shuffled[who == g], axis=0), np.sort(y[who == g])[:, None] * np.ones(6)
        )
    best = []
    for labels in (y, *shuffled.T):
        models = [make_pipeline(StandardScaler(), Ridge(penalty)) for penalty in penalties]
        best.append(
            max(concordance(labels, predicted=oracle(m, X, labels, who)[1]) for m in models)
        )
    row = found.set_index("measure").loc["ccc"]
    assert row["observed"] == pytest.approx(best[0], rel=1e-8)
    assert row["null_mean"] == pytest.approx(np.mean(best[1:]), rel=1e-7)
    assert row["p"] == (1 + sum(value >= best[0] for value in best[1:])) / 7


def test_a_constant_label_has_no_p() -> None:
    data = store(signal=0.7).pooled("gcu").assign_coords(flat=("utterance", np.full(150, 2.5)))
    flat = permutation_test(FakeStore(pooled={"gcu-1": data}), targets="flat", permutations=3)
    assert flat.set_index("measure").loc[["ccc", "r2"], ["observed", "p"]].isna().all(axis=None)


@pytest.mark.parametrize("value", [0.1, 3.3, 1e6])
def test_a_constant_label_is_no_result_whatever_it_is(value: float) -> None:
    data = store(signal=0.7).pooled("gcu").assign_coords(flat=("utterance", np.full(150, value)))
    found = permutation_test(FakeStore(pooled={"gcu-1": data}), targets="flat", permutations=19)
    found = found.set_index("measure")
    assert found.loc["mse", "observed"] == 0
    assert found.loc["mse", "p"] == 1
    columns = ["observed", "null_mean", "null_low", "null_high", "p"]
    assert found.loc[["ccc", "r2"], columns].isna().all(axis=None)


def test_what_does_not_count_is_counted() -> None:
    data = store(signal=0.7).pooled("gcu").load().copy(deep=True)
    data["gate"][:, 3] = np.inf
    data["arousal"][np.arange(150) % 6 == 1] = np.nan
    less = data.isel(utterance=np.setdiff1d(np.arange(150), [3])).chunk(utterance=20)
    options = {"targets": ("arousal", "valence"), "permutations": 5}
    found = permutation_test(FakeStore(pooled={"gcu-1": data.chunk(utterance=31)}), **options)
    expected = permutation_test(FakeStore(pooled={"gcu-1": less}), **options)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9)
    counts = found.set_index("target")[["utterances", "speakers"]].drop_duplicates()
    assert counts.loc["arousal"].tolist() == [124, 5]
    assert counts.loc["valence"].tolist() == [132, 6]
    notes = found.attrs["notes"]
    assert "(the first is 'u0003')" in notes[0]
    assert notes[1:3] == [
        "arousal: 25 of 149 utterances have no label and are left out.",
        "arousal: no label for 1 speakers: s1.",
    ]
    assert notes[3].startswith("valence: 17 of 149")


@pytest.mark.parametrize("permutations", [0, 7, 40])
def test_permutations_are_the_same_however_few_are_done_at_a_time(
    permutations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(memory: int | None) -> tuple[pd.DataFrame, list[int]]:
        columns = []

        def counted(*arguments: Any, y: np.ndarray, **options: Any) -> Sums:
            columns.append(y.shape[1])
            return group_sums(*arguments, y=y, **options)

        monkeypatch.setattr(label_permutation, "group_sums", counted)
        options = {"targets": "arousal", "penalties": [1.0, 10], "permutations": permutations}
        return permutation_test(store(signal=0.1), **options, memory=memory), columns

    monkeypatch.setattr(label_permutation, "resident_bytes", lambda: 10**9)
    whole, at_once = run(None)
    few, one_by_one = run(10**9 + label_permutation._REST + 90_000)
    pd.testing.assert_frame_equal(whole, few, rtol=1e-9)
    assert at_once == [1 + permutations]
    assert one_by_one == ([17, 17, 9] if permutations == 40 else at_once)
    if permutations == 7:  # fewer than are made together: they fit, or none do
        assert run(10**9 + label_permutation._REST + 50_000)[1] == [8]
    with pytest.raises(AnalysisError, match=r"1\.03 GB are allowed: allow more, or use fewer"):
        run(10**9 + label_permutation._REST + 5_000)


PEAK = """
    import sys
    from pathlib import Path
    import dask.array as da, numpy as np, xarray as xr
    from fake_store import FakeStore, coords_of
    from featurestore.analysis.label_permutation import permutation_test
    from featurestore.hardware import resident_bytes

    def block(block_info=None):
        (_, _), (start, stop), _, _ = block_info[None]["array-location"]
        return np.random.default_rng(start).normal(size=(1, stop - start, 6, 64)).astype(np.float32)

    count, permutations = 12_000, 700
    chunks = ((1,), (3000,) * 4, (6,), (64,))
    labels = {"arousal": np.random.default_rng(0).normal(3, 1, count)}
    coords = coords_of(count, speakers=[f"s{i % 8}" for i in range(count)], labels=labels)
    data = xr.Dataset(
        {"gate": (("statistic", "utterance", "layer", "unit"),
                  da.map_blocks(block, chunks=chunks, dtype=np.float32))},
        coords={"statistic": ["mean"], **coords},
    )
    store = FakeStore(pooled={"gcu-1": data})
    memory = resident_bytes() + int(sys.argv[1]) if int(sys.argv[1]) else None
    options = {"targets": "arousal", "penalties": [100.0], "progress": False}
    found = permutation_test(store, **options, permutations=permutations, memory=memory)
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(memory or 0, peak, *found["null_mean"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's to tell")
def test_the_whole_process_keeps_to_the_memory_that_is_allowed() -> None:
    """700 permutations take some 100 MB of labels and sums; a matrix takes 1 MB."""

    def run(more: int) -> list[float]:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PEAK), str(more)],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, HERE)),
                "OPENBLAS_NUM_THREADS": "1",  # two wait for each other beside other tests
            },
        )  # fmt: skip
        return list(map(float, done.stdout.split()))

    allowed, peak, *found = run(120_000_000)
    assert peak <= allowed
    _, unlimited, *same = run(0)
    assert unlimited > allowed
    assert found == pytest.approx(same, rel=1e-9)


MEMORY = """
    import resource, sys
    import dask.array as da, numpy as np
    from featurestore.analysis.sums import group_sums

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def block(block_info=None):
        (start, stop), _ = block_info[None]["array-location"]
        return np.random.default_rng(start).normal(size=(stop - start, 256)).astype(np.float32)

    def rows(count):
        return da.map_blocks(block, chunks=((4096,) * (count // 4096), (256,)), dtype=np.float32)

    few, many = 4096 * 8, 4096 * int(sys.argv[1])
    group_sums(rows(few), y=np.zeros((few, 2)), codes=np.arange(few) % 4, groups=4)
    before = peak()
    found = group_sums(rows(many), y=np.zeros((many, 2)), codes=np.arange(many) % 4, groups=4)
    assert found.n.sum() == many
    print(many * 256 * 4, peak() - before)
"""


def test_memory_does_not_grow_with_the_utterances() -> None:
    """An array of 540 MB is added up in some 10 MB of blocks; codes and labels are 25 MB."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), "128"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    size, grown = map(int, done.stdout.split())
    assert size > 500e6
    assert grown < 0.15 * size
