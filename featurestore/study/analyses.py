"""All analyses of a study, each kept under what it was computed from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from featurestore.analysis.comparison import compare, rows_of
from featurestore.analysis.confounds import by_layer, confound_map
from featurestore.analysis.covariates import Covariate, available, covariates, offered
from featurestore.analysis.curves import curve_table, layer_curves, layer_trends
from featurestore.analysis.features import AnalysisWarning, label_values, text_values
from featurestore.analysis.folds import Split, make_folds
from featurestore.analysis.label_permutation import permutation_test
from featurestore.analysis.maps import correlation_maps
from featurestore.analysis.models import FeatureSet
from featurestore.analysis.regression import check_sets, evaluate_joined
from featurestore.analysis.sets import Joined, join, kind_of
from featurestore.errors import AnalysisError
from featurestore.progress import progress_bar
from featurestore.study.cache import Cache, fingerprint
from featurestore.study.config import OWN, Pair, Study
from featurestore.study.sets import (
    MEAN_OF_CONTROLS,
    RIDGE,
    Listed,
    control_names,
    lacking,
    listed_pairs,
    listed_sets,
    second_table,
    units_of,
)
from featurestore.study.views import (
    StudiedStore,
    ViewFacts,
    control_views,
    main_view,
    mfcc_view,
)

_SAID = {"egemaps": "eGeMAPS", "mfcc": "MFCC"}

# Columns that say something of a speaker or a recording rather than of an emotion.
DESCRIBED = ("duration", "loudness", "f0", "sex", "gender", "age", "corpus", "language")


@dataclass(eq=False)
class Findings:
    """What a study found; tables as `featurestore.report.contents.Contents` has them.

    Attributes:
        main: view that it is about.
        controls: views of random networks.
        joined: utterances that all sets were compared on, and their labels.
        tables: by name.
        notes: what was left out.
    """

    main: ViewFacts
    controls: list[ViewFacts]
    joined: Joined
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def analyse(
    store: StudiedStore, study: Study, *, cache: Cache, progress: bool | None = None
) -> Findings:
    """Everything that a report of a study says in numbers.

    Args:
        store: with the views that the study names.
        study: what is asked.
        cache: of earlier runs.
        progress: whether to show bars; None shows them on a terminal.

    Raises:
        AnalysisError: what a function of `featurestore.analysis` raises: an unknown label, view or
            speaker, folds that would leak.
    """
    plan = study.analysis
    main = main_view(store.facts, plan.view)
    controls = control_views(store.facts, main)
    wanted = listed_sets(
        plan, main=main, controls=controls, own=study.sets, mfcc=mfcc_view(store.facts, main)
    )
    check_sets([one.feature_set for one in wanted])
    listed, notes = _held(wanted, store.kinds)
    names = [one.feature_set.name for one in listed]
    pairs = listed_pairs(plan, names, study.comparisons, controls=bool(controls))
    if not controls:
        notes.append("The store has no view of an untrained network like this, so no control.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnalysisWarning)  # what they say is in the notes
        joined = join(
            store, [f"{units_of(main, plan)}.mean", *(s.feature_set.features for s in listed)]
        )
        found = Findings(main, controls, joined, notes=[*notes, *joined.notes])
        _map_stages(store, study, found, cache)
        _result_stages(study, found, listed, cache, progress)
        _curve_stages(store, study, found, cache, progress)
        _permutation_stages(store, study, found, cache, progress)
    _comparison_stage(study, found, pairs, cache)
    found.notes = list(dict.fromkeys(found.notes))
    return found


def _held(wanted: Sequence[Listed], kinds: set[str]) -> tuple[list[Listed], list[str]]:
    """Sets that the store can answer, and a note on each view that others would need.

    Those that a study adds are kept: the store refuses them, with its reason.
    """
    absent: dict[str, list[str]] = {}
    for one in wanted:
        if OWN not in one.tables:
            for kind in sorted(lacking(one.feature_set, kinds)):
                absent.setdefault(kind, []).append(one.feature_set.name)
    left_out = {name for names in absent.values() for name in names}
    notes = [
        f"The store has no {_SAID[kind]} view, so {len(names)} feature sets are absent: "
        f"{'; '.join(names)}."
        for kind, names in sorted(absent.items())
    ]
    return [one for one in wanted if one.feature_set.name not in left_out], notes


def labels_key(joined: Joined, targets: Sequence[str]) -> str:
    """Of the utterances, their speakers and labels."""
    said = [
        text_values(joined.table, name) for name in ("id", "speaker") if name in joined.table.coords
    ]
    return fingerprint(*said, *(label_values(joined.table, target=t) for t in targets))


def _take(found: Findings, tables: dict[str, pd.DataFrame]) -> None:
    for name, table in tables.items():
        found.tables[name] = table
        found.notes += table.attrs.get("notes", [])


def _noted(table: pd.DataFrame, notes: Sequence[str]) -> pd.DataFrame:
    table.attrs["notes"] = list(notes)
    return table


def _map_stages(store: StudiedStore, study: Study, found: Findings, cache: Cache) -> None:
    plan, features = study.analysis, f"{units_of(found.main, study.analysis)}.mean"
    partial = offered(store, plan.covariates)
    missing = [one for one in plan.covariates if one not in partial]
    found.notes += [f"The store has no {one}, so the partial map does without." for one in missing]
    names = plan.confounds or tuple(
        one
        for one in available(store, found.joined.table, without=plan.targets)
        if one in DESCRIBED
    )
    own = join(store, [features], finite=False)
    data = [own.matrix(features), labels_key(own, ())]

    def maps() -> dict[str, pd.DataFrame]:
        one = correlation_maps(
            store,
            targets=plan.targets,
            features=features,
            partial=partial,
            permutations=plan.permutations,
            resamples=plan.resamples,
            seed=plan.seed,
        )
        tables = {"thresholds": one.thresholds, "stability": one.stability}
        return {"maps": _noted(one.maps, one.notes), **tables}

    asked = [plan.targets, features, plan.permutations, plan.resamples, plan.seed]
    given = [labels_key(own, plan.targets)]
    given += _numbers(covariates(store, own.table, partial, drop_first=True))
    _take(found, cache.tables("maps", fingerprint(*data, *given, asked), maps))
    if names:

        def confounds() -> dict[str, pd.DataFrame]:
            whole = confound_map(store, features=features, names=names)
            return {"confounds": by_layer(whole), "confound_map": whole}

        given = _numbers(covariates(store, own.table, names))
        _take(found, cache.tables("confounds", fingerprint(*data, features, *given), confounds))


def _numbers(found: Sequence[Covariate]) -> list[Any]:
    """All of covariates, to be fingerprinted."""
    return [part for one in found for part in (one.name, one.said, one.numbers)]


def _result_stages(
    study: Study, found: Findings, listed: Sequence[Listed], cache: Cache, progress: bool | None
) -> None:
    plan = study.analysis
    rows = []
    agreed, note = _agreed(found.joined, study)
    kinds = {kind_of(block.view) for block in found.joined.blocks}
    second = [one for one in second_table(plan, main=found.main) if not lacking(one, kinds)]
    folds = len(labelled_folds(found.joined, study)) * len(plan.targets)
    total = folds * (len(listed) + len(second))
    with progress_bar("Held-out prediction", total, unit="folds", show=progress) as tick:
        for one in listed:
            table = _evaluated(found.joined, one.feature_set, study, cache)
            found.notes += table.attrs.get("notes", [])
            rows += [table.assign(table=name) for name in one.tables]
            tick(folds)
        for feature_set in second:
            table = _evaluated(agreed, feature_set, study, cache)
            found.notes += [f"Table 2: {one}" for one in table.attrs.get("notes", [])]
            rows.append(table.assign(table="2"))
            tick(folds)
    found.notes.append(f"Table 2: {note}")
    results = pd.concat(rows, ignore_index=True)
    order = {name: i for i, name in enumerate(dict.fromkeys(["1", "2", *results["table"]]))}
    places = {target: i for i, target in enumerate(plan.targets)}
    keys = results["table"].map(order) * len(places) + results["target"].map(places)
    found.tables["results"] = results.iloc[np.argsort(keys.to_numpy(), kind="stable")].reset_index(
        drop=True
    )
    columns = ["table", *(name for name in results.columns if name != "table")]
    found.tables["results"] = found.tables["results"][columns]


def labelled_folds(joined: Joined, study: Study) -> list[Split]:
    """Folds over the utterances that have any of the labels."""
    labels = [label_values(joined.table, target=target) for target in study.analysis.targets]
    known = np.asarray(np.isfinite(np.stack(labels)).any(axis=0))
    return make_folds(joined.table, scheme=study.analysis.folds, of=known)


def _agreed(joined: Joined, study: Study) -> tuple[Joined, str]:
    """Utterances whose raters agreed on a category, and a note that says how many."""
    plan, column = study.analysis, study.analysis.emotion
    if column not in joined.table.coords:
        return joined, f"the store has no {column!r} label, so all utterances are used."
    category = text_values(joined.table, column)
    keep = (category != "") & (category != plan.disagreement)
    if not keep.any():
        return joined, f"no utterance has an agreed {column!r}, so all are used."
    said = f"{int(keep.sum())} of {len(keep)} utterances have an agreed category"
    agreed = joined.take(keep)
    try:
        for target in plan.targets:
            known = np.isfinite(label_values(agreed.table, target=target))
            make_folds(agreed.table, scheme=plan.folds, of=known)
    except AnalysisError as error:
        return joined, f"{said}, which is too few, so all are used. {error}"
    return agreed, f"{said}."


def _evaluated(joined: Joined, feature_set: FeatureSet, study: Study, cache: Cache) -> pd.DataFrame:
    plan = study.analysis

    def compute() -> dict[str, pd.DataFrame]:
        rows = evaluate_joined(joined, sets=[feature_set], targets=plan.targets, folds=plan.folds)
        return {"rows": rows}

    key = fingerprint(
        labels_key(joined, plan.targets),
        joined.matrix(feature_set.features),
        vars(feature_set),
        plan.targets,
        plan.folds,
        _fold_key(joined, plan.folds),
    )
    return cache.tables("set", key, compute)["rows"]


def _fold_key(joined: Joined, folds: str) -> list[str]:
    return text_values(joined.table, folds).tolist() if folds in joined.table.coords else []


def _curve_stages(
    store: StudiedStore, study: Study, found: Findings, cache: Cache, progress: bool | None
) -> None:
    plan = study.analysis
    if len(found.main.layer_names) < 2:
        found.notes.append("The network has a single layer, so there are no curves over layers.")
        return
    curves, trends = [], []
    for view in [found.main, *found.controls[:1]]:
        features = f"{units_of(view, plan, found.main)}.mean"
        joined = join(store, [features])
        key = fingerprint(
            labels_key(joined, plan.targets), joined.matrix(features), plan.targets, plan.folds,
            _fold_key(joined, plan.folds),
        )  # fmt: skip

        def compute(features: str = features) -> dict[str, pd.DataFrame]:
            return {
                "rows": layer_curves(
                    store, targets=plan.targets, features=features, folds=plan.folds,
                    progress=progress,
                )
            }  # fmt: skip

        rows = cache.tables("layers", key, compute)["rows"]
        said = units_said(view, study, found.main)
        options: dict[str, Any] = {"resamples": plan.resamples, "seed": plan.seed}
        curves.append(curve_table(rows, **options).assign(features=said))
        trends.append(layer_trends(rows, **options).assign(features=said))
    found.tables["curves"] = pd.concat(curves, ignore_index=True)
    found.tables["trends"] = pd.concat(trends, ignore_index=True)


def units_said(view: ViewFacts, study: Study, main: ViewFacts) -> str:
    """What a curve is of, for people."""
    capture = study.analysis.capture or main.captures[0]
    return f"mean of {capture}, weights {view.weights_source}"


def _permutation_stages(
    store: StudiedStore, study: Study, found: Findings, cache: Cache, progress: bool | None
) -> None:
    plan = study.analysis
    if not plan.permutations:
        return
    wanted = [(RIDGE, f"{units_of(found.main, plan)}.mean")]
    wanted += [("eGeMAPS, ridge, standard scaling", "egemaps")] if "egemaps" in store.kinds else []
    tables = []
    for name, features in wanted:
        joined = join(store, [features])

        def compute(name: str = name, features: str = features) -> dict[str, pd.DataFrame]:
            return {
                "rows": permutation_test(
                    store, targets=plan.targets, features=features, folds=plan.folds, name=name,
                    permutations=plan.permutations, seed=plan.seed, progress=progress,
                )
            }  # fmt: skip

        key = fingerprint(
            labels_key(joined, plan.targets), joined.matrix(features), plan.targets, plan.folds,
            plan.permutations, plan.seed, _fold_key(joined, plan.folds),
        )  # fmt: skip
        tables.append(cache.tables("permutations", key, compute)["rows"])
    found.tables["permutations"] = pd.concat(tables, ignore_index=True)


def _comparison_stage(study: Study, found: Findings, pairs: Sequence[Pair], cache: Cache) -> None:
    plan, results = study.analysis, found.tables["results"]
    once = results[results["table"] != "2"].drop_duplicates(["feature_set", "target", "speaker"])
    random = control_names(found.controls)

    def side(name: str) -> Any:
        return (
            [rows_of(once, one) for one in random]
            if name == MEAN_OF_CONTROLS
            else rows_of(once, name)
        )

    def compute() -> dict[str, pd.DataFrame]:
        found = [
            _compared(side(pair.first), side(pair.second), (pair.first, pair.second), study)
            for pair in pairs
        ]
        two = results[results["table"] == "2"]
        ends = [
            name
            for name in two["feature_set"].unique()
            if " of first " in name or " of last " in name
        ]
        if len(ends) == 2:
            first, second = (rows_of(two, name) for name in ends)
            found.append(_compared(first, second, (ends[0], ends[1]), study))
        return {"comparisons": pd.concat(found, ignore_index=True) if found else pd.DataFrame()}

    asked = [[vars(pair) for pair in pairs], random, plan.resamples, plan.seed]
    key = fingerprint(results.to_json(double_precision=15), asked)
    _take(found, cache.tables("comparisons", key, compute))


def _compared(first: Any, second: Any, names: tuple[str, str], study: Study) -> pd.DataFrame:
    return compare(
        first,
        second,
        names=names,
        resamples=study.analysis.resamples,
        seed=study.analysis.seed,
    )
