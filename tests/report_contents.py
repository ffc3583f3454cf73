"""The contents of a report about nothing: random values with the columns of the real ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from featurestore.analysis.comparison import compare
from featurestore.report.contents import Contents, Scatter, Trace

TARGETS = ("valence", "arousal")


def contents(
    *,
    layers: int = 15,
    units: int = 128,
    speakers: tuple[str, ...] = ("s1", "s2", "s3", "s4", "s5", "s6"),
    utterances: int = 120,
    text: str = "kids are talking by the door",
    title: str = "A corpus that is noise",
) -> Contents:
    """Contents whose names and texts may be anything."""
    rng = np.random.default_rng(0)
    names = [f"block_{layer // 5}_{2 ** (layer % 5)}" for layer in range(layers)]
    ids = [f"{speakers[i % len(speakers)]}-{i:04d}" for i in range(utterances)]
    who = [speakers[i % len(speakers)] for i in range(utterances)]
    labels = pd.DataFrame(
        {"id": ids, "speaker": who, **{t: rng.integers(1, 6, utterances) * 1.0 for t in TARGETS}}
    )
    values = rng.normal(size=(utterances, layers, units)).astype(np.float32)
    maps = pd.concat(
        [_map(rng, target, layers, units, len(speakers), utterances) for target in TARGETS]
    )
    return Contents(
        title=title,
        targets=TARGETS,
        layer_names=names,
        corpus={"utterances": str(utterances), "speakers": str(len(speakers)), "hours": "0.10"},
        speakers=pd.DataFrame(
            {
                "speaker": speakers,
                "utterances": utterances // len(speakers),
                "hours": 0.02,
                "sex": ["f", "m"] * (len(speakers) // 2),
                **{
                    f"{t}_{what}": value
                    for t in TARGETS
                    for what, value in (("mean", 3.0), ("sd", 1.2), ("missing", 0))
                },
            }
        ),
        maps=maps.reset_index(drop=True),
        thresholds=pd.DataFrame(
            {
                "target": TARGETS,
                "threshold": 0.31,
                "permutations": 1000,
                "defined": layers * units - 1,
                "significant": [
                    int((m["q"] < 0.05).sum()) for _, m in maps.groupby("target", sort=False)
                ],
                "partial_significant": 3,
                "covariates": "duration, loudness",
            }
        ),
        stability=_stability(rng, speakers),
        confounds=pd.DataFrame(
            [
                {
                    "covariate": c,
                    "kind": kind,
                    "layer": layer,
                    "mean_abs_r": 0.1 + 0.02 * layer,
                    "max_abs_r": 0.5,
                    "unit": 7,
                    "chance": 0.08,
                }
                for c, kind in (
                    ("duration", "within speakers"),
                    ("loudness", "within speakers"),
                    ("sex=f", "all utterances"),
                )
                for layer in range(layers)
            ]
        ),
        curves=pd.DataFrame(
            [
                {
                    "target": t,
                    "features": "gate mean",
                    "layer": layer,
                    "measure": m,
                    "value": v,
                    "low": v - 0.1,
                    "high": v + 0.08,
                }
                for t in TARGETS
                for m in ("ccc", "mse")
                for layer in range(layers)
                for v in [0.3 + 0.3 * np.sin(layer / 4 + len(t))]
            ]
        ),
        trends=pd.DataFrame(
            {
                "target": [*TARGETS, " - ".join(TARGETS)],
                "features": "gate mean",
                "slope": [0.1, -0.2, 0.3],
                "low": [-0.1, -0.3, 0.1],
                "high": [0.2, -0.1, 0.5],
                "p": [0.3, 0.01, 0.02],
                "wilcoxon_p": [0.4, 0.02, 0.03],
                "speakers": len(speakers),
            }
        ),
        results=_results(rng, speakers, utterances),
        comparisons=_comparisons(rng, speakers, utterances),
        permutations=pd.DataFrame(
            [
                {
                    "target": t,
                    "feature_set": "all units, ridge",
                    "measure": m,
                    "observed": 0.5,
                    "null_mean": 0.01,
                    "null_low": -0.05,
                    "null_high": 0.06,
                    "p": 0.001,
                    "permutations": 1000,
                }
                for t in TARGETS
                for m in ("ccc", "r2")
            ]
        ),
        traces=[
            _trace(rng, ids[i], who[i], target, text, audio=i != 1)
            for i in range(3)
            for target in TARGETS
        ],
        scatter=Scatter(labels, values, total=10 * utterances),
        statements=[
            "Ridge on all units predicts arousal better: MSE difference -0.10 (-0.20 to -0.01)."
        ],
        caveats=["Weights random:0: an untrained network, a control and not a finding."],
        notes=["1 unit is constant and has no correlation."],
        lineage={
            "store": "corpus.store",
            "state": "0123456789abcdef",
            "view": "gcu-1a2b3c4d5e6f",
            "featurestore": "0.5.0",
        },
    )


def _map(
    rng: np.random.Generator, target: str, layers: int, units: int, speakers: int, n: int
) -> pd.DataFrame:
    layer, unit = np.divmod(np.arange(layers * units), units)
    r = np.tanh(rng.normal(size=layers * units) * 0.2)
    p = np.minimum(1, np.exp(-((r / 0.1) ** 2)))
    table = pd.DataFrame(
        {
            "target": target,
            "layer": layer,
            "unit": unit,
            "r": r,
            "low": r - 0.1,
            "high": r + 0.1,
            "p": p,
            "q": np.minimum(1, 3 * p),
        }
    )
    table = table.assign(
        tau2=0.01,
        i2=0.3,
        agreement=0.8,
        speakers=speakers,
        n=n,
        r_within=r,
        within_low=r - 0.1,
        within_high=r + 0.1,
    )
    table = table.assign(
        p_max=np.minimum(1, 50 * p), r_between=rng.uniform(-1, 1, layers * units), r_all=r / 2
    )
    table = table.assign(
        partial_r=r / 3,
        partial_low=r / 3 - 0.1,
        partial_high=r / 3 + 0.1,
        partial_p=np.sqrt(p),
        partial_q=1.0,
    )
    undefined = [c for c in table.columns if c not in ("target", "layer", "unit", "n", "speakers")]
    table.loc[5, undefined] = np.nan
    return table


def _stability(rng: np.random.Generator, speakers: tuple[str, ...]) -> pd.DataFrame:
    verdicts = ("shared", "own", "noisy")
    return pd.DataFrame(
        [
            {
                "target": t,
                "speaker": s,
                "n": 20,
                "label_sd": 1.1,
                "mean_abs_r": 0.2,
                "chance_abs_r": 0.18,
                "reliability": 0.5,
                "similarity": float(rng.uniform(-0.2, 0.9)),
                "ceiling": 0.6,
                "verdict": verdicts[i % 3],
                "first_abs_r": 0.25,
                "last_abs_r": 0.2,
            }
            for t in TARGETS
            for i, s in enumerate(speakers)
        ]
    )


SETS = {
    "1": ("train mean", "100 best of all units", "eGeMAPS"),
    "2": (
        "train mean",
        "100 best of first 3 layers",
        "100 best of last 3 layers",
        "100 best of all layers",
        "eGeMAPS",
    ),
}


def _results(rng: np.random.Generator, speakers: tuple[str, ...], utterances: int) -> pd.DataFrame:
    return pd.concat(
        [
            _set_rows(rng, table, name, t, speakers, utterances)
            for table, names in SETS.items()
            for name in names
            for t in TARGETS
        ],
        ignore_index=True,
    )


def _set_rows(
    rng: np.random.Generator,
    table: str,
    name: str,
    target: str,
    speakers: tuple[str, ...],
    utterances: int,
) -> pd.DataFrame:
    n = utterances // len(speakers)
    noise = rng.uniform(0.8, 1.2, len(speakers))
    return pd.DataFrame(
        {
            "table": table,
            "feature_set": name,
            "target": target,
            "fold": speakers,
            "speaker": speakers,
            "n_train": utterances - n,
            "n_test": n,
            "n_features": 100,
            "mse": noise,
            "ccc": 0.4 * noise,
            "r2": 0.2 * noise,
            "pearson": 0.45 * noise,
            "truth_mean": 3.0,
            "predicted_mean": 3.0 + 0.1 * noise,
            "truth_variance": 1.2,
            "predicted_variance": 0.5,
            "covariance": 0.3 * noise,
        }
    )


def _comparisons(
    rng: np.random.Generator, speakers: tuple[str, ...], utterances: int
) -> pd.DataFrame:
    found = []
    for target in TARGETS:
        first, second = (
            _set_rows(rng, "1", name, target, speakers, utterances) for name in SETS["1"][1:]
        )
        found.append(compare(first, second, resamples=200))
    return pd.concat(found, ignore_index=True)


def _trace(
    rng: np.random.Generator, id: str, speaker: str, target: str, text: str, *, audio: bool
) -> Trace:
    frames = 110
    values = 3 + np.cumsum(rng.normal(size=frames)) / 8
    return Trace(
        id=id,
        speaker=speaker,
        target=target,
        features="all units, ridge",
        time_s=np.arange(frames) * 0.032,
        values=values,
        predicted=float(values.mean()),
        truth=4.0,
        low=1.0,
        high=5.0,
        text=text,
        waveform=np.sort(rng.uniform(-0.6, 0.6, (400, 2)), axis=1).astype(np.float32)
        if audio
        else None,
        log_mel=rng.uniform(-80, 0, (64, frames)).astype(np.float32) if audio else None,
        duration_s=frames * 0.032,
    )
