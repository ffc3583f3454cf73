"""The feature sets that every study compares, and which of them with which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from featurestore.analysis.models import FeatureSet, Scale, Select, table_sets
from featurestore.analysis.sets import END_LAYERS, kind_of, parse
from featurestore.errors import AnalysisError
from featurestore.study.config import OWN, AnalysisPlan, Pair, SetPlan
from featurestore.study.views import ViewFacts, in_view

RIDGE = "all units, ridge"
POOLING, BASELINES, CONTROLS = "pooling", "baselines", "controls"
MEAN_OF_CONTROLS = "mean of the random networks"
ROBUST_EGEMAPS = "eGeMAPS, robust"  # of the paper's tables


@dataclass(frozen=True)
class Listed:
    """A feature set and the tables that show it.

    Attributes:
        feature_set: what is evaluated, once.
        tables: names of tables, "1" and so on.
    """

    feature_set: FeatureSet
    tables: tuple[str, ...]


def listed_sets(
    plan: AnalysisPlan,
    *,
    main: ViewFacts,
    controls: Sequence[ViewFacts],
    own: Sequence[SetPlan] = (),
    mfcc: str = "mfcc",
) -> list[Listed]:
    """Sets on all labelled utterances, whether the store has their views or not.

    Those of table 2 are `second_table`.

    Args:
        plan: how many units are selected.
        main: the network's view.
        controls: views of random networks.
        own: sets that the study adds.
        mfcc: view of the control.
    """
    units = units_of(main, plan)
    best, size = plan.best, plan.same_size
    first = table_sets(1, best=best, view=main.name, capture=plan.capture or None, mfcc=mfcc)
    equal = [one.name for one in first if one.name in dict(_same_size(size))]
    found = [Listed(one, ("1", CONTROLS) if one.name in equal else ("1",)) for one in first]
    every = f"{units}.mean + {units}.max + {units}.std"
    found += [
        Listed(FeatureSet(RIDGE, f"{units}.mean", model="ridge"), (POOLING, BASELINES, CONTROLS)),
        Listed(FeatureSet("maximum over frames, ridge", f"{units}.max", model="ridge"), (POOLING,)),
        Listed(
            FeatureSet("standard deviation over frames, ridge", f"{units}.std", model="ridge"),
            (POOLING,),
        ),
        Listed(FeatureSet("mean + maximum + sd, ridge", every, model="ridge"), (POOLING,)),
        Listed(FeatureSet("MFCC mean + std, ridge", mfcc, model="ridge"), (BASELINES,)),
        *(
            Listed(
                FeatureSet(
                    f"eGeMAPS, ridge, {scale} scaling", "egemaps", scale=scale, model="ridge"
                ),
                (BASELINES,),
            )
            for scale in _SCALES
        ),
        Listed(
            FeatureSet(
                "all units + eGeMAPS, ridge, robust scaling",
                f"{units}.mean + egemaps",
                scale="robust",
                model="ridge",
            ),
            (BASELINES,),
        ),
    ]
    found += [
        Listed(FeatureSet(name, f"{units_of(one, plan, main)}.mean", model="ridge"), (CONTROLS,))
        for name, one in zip(control_names(controls), controls, strict=True)
    ]
    found += [
        Listed(FeatureSet(name, f"{units}.mean", size, select, "standard"), (CONTROLS,))
        for name, select in _same_size(size)
        if name not in equal
    ]
    leaky = f"{best} best of all units, LEAKY: selected on held-out speakers too"
    found.append(Listed(FeatureSet(leaky, f"{units}.mean", best, leaky=True), (CONTROLS,)))
    return found + [Listed(own_set(one, main), (OWN,)) for one in own]


def control_names(controls: Sequence[ViewFacts]) -> list[str]:
    """Names of the sets of random networks, each another one."""
    sources = [one.weights_source for one in controls]
    return [
        f"{RIDGE} ({one.weights_source}"
        + (f", {one.name})" if sources.count(one.weights_source) > 1 else ")")
        for one in controls
    ]


_SCALES: tuple[Scale, ...] = ("standard", "robust")


def _same_size(size: int) -> tuple[tuple[str, Select], ...]:
    return (
        (f"{size} best of all units", "f_regression"),
        (f"{size} principal components of all units", "pca"),
    )


def second_table(plan: AnalysisPlan, *, main: ViewFacts) -> list[FeatureSet]:
    """Sets of the paper's table 2, on utterances with an agreed category."""
    return list(table_sets(2, best=plan.best, view=main.name, capture=plan.capture or None))


def units_of(view: ViewFacts, plan: AnalysisPlan, main: ViewFacts | None = None) -> str:
    """The units of a view, as an expression without a statistic.

    Args:
        view: whose they are.
        plan: may name the capture.
        main: whose first capture it is if the plan names none; by default that of the view itself.
    """
    return f"{view.name}.{plan.capture or (main or view).captures[0]}"


def own_set(plan: SetPlan, main: ViewFacts) -> FeatureSet:
    """A set that a study file adds."""
    options: dict[str, Any] = {"select": plan.select, "model": plan.model, "leaky": plan.leaky}
    if plan.scale:
        options["scale"] = plan.scale
    return FeatureSet(plan.name, in_view(plan.features, main.name), plan.best or None, **options)


def lacking(feature_set: FeatureSet, kinds: set[str]) -> set[str]:
    """Kinds of baselines that a set is made of and the store does not have."""
    terms = parse(feature_set.features) if feature_set.features else ()
    return {kind_of(term.block.view) for term in terms} & {"egemaps", "mfcc"} - kinds


def headlines(plan: AnalysisPlan, comparisons: pd.DataFrame) -> list[Pair]:
    """The comparisons that a report tells in sentences, as far as they were made.

    Does training matter, is it more than spectra and than hand-made features, do two statistics
    differ, and do the ends of the network?
    """
    wanted = [
        Pair(RIDGE, MEAN_OF_CONTROLS),
        Pair(RIDGE, "MFCC mean + std, ridge"),
        Pair(RIDGE, "eGeMAPS, ridge, robust scaling"),
        Pair(f"{plan.best} best of all units", ROBUST_EGEMAPS),
        Pair("maximum over frames, ridge", RIDGE),
        Pair(
            f"{plan.best} best of first {END_LAYERS} layers",
            f"{plan.best} best of last {END_LAYERS} layers",
        ),
    ]
    if comparisons.empty:
        return []
    made = set(zip(comparisons["first"], comparisons["second"], strict=True))
    return [pair for pair in wanted if (pair.first, pair.second) in made]


def check_own(sets: Sequence[SetPlan]) -> None:
    """Refuse sets of a study file that no store could answer.

    Raises:
        AnalysisError: a choice that there is not, or no expression.
    """
    for one in sets:
        parse(str(own_set(one, ViewFacts("network", "network")).features))


def listed_pairs(
    plan: AnalysisPlan, names: Sequence[str], own: Sequence[Pair], *, controls: bool
) -> list[Pair]:
    """Comparisons that every study makes, as far as both sets are there, and its own.

    Args:
        plan: how many units are selected.
        names: of all sets.
        own: that the study adds.
        controls: whether there are random networks.

    Raises:
        AnalysisError: a comparison of its own with a set that is not there; names those there are.
    """
    there = {*names, MEAN_OF_CONTROLS} if controls else set(names)
    for pair in own:
        for name in (pair.first, pair.second):
            if name not in there:
                held = "; ".join([*names, *there.difference(names)])
                raise AnalysisError(f"No feature set {name!r} to compare; there are: {held}.")
        if pair.first == MEAN_OF_CONTROLS:
            raise AnalysisError(f"{MEAN_OF_CONTROLS!r} can only be the second of a comparison.")
    wanted = _pairs(plan)
    kept = [pair for pair in wanted if pair.first in there and pair.second in there]
    return list(dict.fromkeys([*kept, *own]))


def _pairs(plan: AnalysisPlan) -> list[Pair]:
    best = f"{plan.best} best of all units"
    return [
        Pair(RIDGE, MEAN_OF_CONTROLS),
        Pair(RIDGE, "eGeMAPS, ridge, standard scaling"),
        Pair(RIDGE, "eGeMAPS, ridge, robust scaling"),
        Pair(RIDGE, "MFCC mean + std, ridge"),
        Pair(RIDGE, "train mean"),
        Pair("all units + eGeMAPS, ridge, robust scaling", "eGeMAPS, ridge, robust scaling"),
        Pair("maximum over frames, ridge", RIDGE),
        Pair("standard deviation over frames, ridge", RIDGE),
        Pair("mean + maximum + sd, ridge", RIDGE),
        Pair(best, "eGeMAPS"),
        Pair(best, ROBUST_EGEMAPS),
        *(Pair(name, ROBUST_EGEMAPS) for name, _ in _same_size(plan.same_size)),
    ]
