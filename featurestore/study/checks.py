"""What a study gets wrong, found before hours of ingest and analysis."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from featurestore.analysis.covariates import covariates
from featurestore.analysis.features import targets_by_missing
from featurestore.analysis.folds import make_folds
from featurestore.analysis.regression import check_sets
from featurestore.analysis.sets import kind_of, layers_of, parse
from featurestore.errors import AnalysisError
from featurestore.report.exports import trace_names, usual_names
from featurestore.result_files import check_free, check_output
from featurestore.storage import Place, as_place
from featurestore.store.reader import open_store
from featurestore.store.records import MARK
from featurestore.study.bundle import check_bundle
from featurestore.study.config import OWN, SetPlan, Study
from featurestore.study.sets import check_own, lacking, listed_pairs, listed_sets, own_set
from featurestore.study.views import Studied, ViewFacts, control_views, main_view, mfcc_view
from featurestore.types import NETWORK, VIEWS

if TYPE_CHECKING:
    from featurestore.setup import IngestConfig
    from featurestore.store.schema import ViewConfig

PAGE = "index.html"
_MEASURED = ("duration_s", "frame_count")  # of the audio, so that no manifest has them
_HEARD = ("duration", "loudness", "f0")
_NAMED = 5  # utterances that a message names


def check_places(study: Study, bundle: str | os.PathLike[str] | None = None) -> None:
    """Refuse to write where something else is.

    Args:
        study: whose output and store.
        bundle: zip file to be written as well.

    Raises:
        AnalysisError: an output in a store, files there that no command here wrote, or a bundle
            that would replace something else.
    """
    check_output(study.output, store=study.store)
    targets = study.analysis.targets
    names = [*usual_names(targets), *trace_names(study.traces.ids, targets)]
    check_free(study.output, [PAGE, *names])
    if bundle:
        check_bundle(bundle, store=study.store)


def check_study(study: Study, *, bundle: str | os.PathLike[str] | None = None) -> None:
    """Refuse what an ingest or an analysis of the study would refuse, as far as it is known before.

    Weights are loaded, the manifest is read, no audio is; nothing is written.

    Args:
        study: from `read_study`.
        bundle: zip file to be written as well.

    Raises:
        FeatureStoreError: weights, a choice, a name or a place that cannot be used; names it.
    """
    check_own(study.sets)
    check_places(study, bundle)
    if study.manifest:
        table = _rows(study)
        study, facts = _with_ingest(study)
        main = main_view(facts, study.analysis.view)
    else:
        store = Studied(open_store(study.store))
        facts = store.facts
        main = main_view(facts, study.analysis.view)
        table = store.pooled(main.name)
    _check_sets(study, facts, main)
    _check_labels(study, table)


def ingests(study: Study) -> list[tuple[str, IngestConfig]]:
    """Weights and choices of the ingests of a study, that of its own network first."""
    from featurestore.setup import IngestConfig

    plan = study.ingest
    config = IngestConfig(
        views=plan.views,
        captures=plan.captures or None,
        frames=plan.frames,
        precision=plan.precision,
    )
    control = dataclasses.replace(config, views=(NETWORK,), frames=False)
    return [(plan.weights, config), *((weights, control) for weights in plan.controls)]


def of_its_weights(study: Study, views: Sequence[str]) -> Study:
    """The study, about the view that its own weights make.

    Args:
        study: with a manifest.
        views: that the first of its ingests makes.
    """
    networks = [name for name in views if kind_of(name) not in VIEWS]
    if study.analysis.view != NETWORK or not networks:
        return study
    plan = dataclasses.replace(study.analysis, view=networks[0])
    return dataclasses.replace(study, analysis=plan)


class _Views:
    """Views that a store has or will have, for their facts."""

    def __init__(self) -> None:
        self.configs: dict[str, ViewConfig] = {}

    @property
    def views(self) -> list[str]:
        return list(self.configs)

    @property
    def kinds(self) -> set[str]:
        return {one.kind for one in self.configs.values()}

    def config(self, name: str) -> ViewConfig:
        return self.configs[name]


def _with_ingest(study: Study) -> tuple[Study, dict[str, ViewFacts]]:
    """The study about its own view, and the views that its store will have."""
    from featurestore.encoder import load_encoder
    from featurestore.setup import set_up

    root, coming = as_place(study.store), _Views()
    own: list[str] = []
    for weights, config in ingests(study):
        encoder = load_encoder(weights) if config.wants_network else None
        made = set_up(root, encoder, config, None)
        names = [view.name for view in made.views.values()]
        own = own or names
        coming.configs |= {view.name: view.config for view in made.views.values()}
    there = Studied(open_store(root)).facts if root.exists(MARK) else {}
    return of_its_weights(study, own), {**there, **Studied(coming).facts}


def _rows(study: Study) -> xr.Dataset:
    """Utterances that the store will have: coordinates along utterance."""
    from featurestore.planning import load_table
    from featurestore.store.rows import merge_rows, read_rows

    root = as_place(study.store)
    table = load_table(study.manifest)
    table = table[~_forgotten(root, table)].reset_index(drop=True)
    rows = merge_rows(read_rows(root), table)[0]
    return xr.Dataset(coords={str(one): ("utterance", rows[one].to_numpy()) for one in rows})


def _forgotten(root: Place, table: pd.DataFrame) -> np.ndarray:
    from featurestore.store.tombstones import read_tombstones

    return read_tombstones(root).matches(table)


def _check_sets(study: Study, facts: dict[str, ViewFacts], main: ViewFacts) -> None:
    """Refuse names that collide, comparisons with nothing, and features that there will not be."""
    plan, controls = study.analysis, control_views(facts, main)
    _check_capture(main, plan.capture, "analysis.capture")
    for one in study.sets:
        _check_features(one, facts, main)
    wanted = listed_sets(
        plan, main=main, controls=controls, own=study.sets, mfcc=mfcc_view(facts, main)
    )
    check_sets([one.feature_set for one in wanted])
    kinds = {one.kind for one in facts.values()}
    names = [
        one.feature_set.name
        for one in wanted
        if OWN in one.tables or not lacking(one.feature_set, kinds)
    ]
    listed_pairs(plan, names, study.comparisons, controls=bool(controls))


def _check_features(plan: SetPlan, facts: Mapping[str, ViewFacts], main: ViewFacts) -> None:
    """Refuse an expression about views, captures or layers that there will not be."""
    expression = str(own_set(plan, main).features)
    for term in parse(expression):
        block = term.block
        found = [one for one in facts.values() if block.view in (one.name, one.kind)]
        if not found:
            raise AnalysisError(
                f"Feature set {plan.name!r}: there will be no view {block.view!r}; there will be: "
                f"{', '.join(facts)}. ingest.views says what is made."
            )
        if len(found) == 1:  # several are left to the store, which asks for one
            _check_capture(found[0], block.capture or "", f"Feature set {plan.name!r}")
            if term.layers is not None and found[0].layer_names:
                layers_of(np.empty((1, len(found[0].layer_names), 1)), term.layers, expression)


def _check_capture(view: ViewFacts, capture: str, where: str) -> None:
    if capture and capture not in view.captures:
        raise AnalysisError(
            f"{where}: view {view.name!r} will hold no capture {capture!r}, only: "
            f"{', '.join(view.captures)}. ingest.captures says which are made."
        )


def _check_labels(study: Study, table: xr.Dataset) -> None:
    """Refuse targets, folds, covariates and utterances to trace that the corpus does not have."""
    plan = study.analysis
    targets = [one for one in plan.targets if one in table.coords or one not in _MEASURED]
    for _, known in targets_by_missing(table, targets):
        make_folds(table, scheme=plan.folds, of=known)
    ids = set(table["id"].to_numpy().tolist())
    absent = [one for one in study.traces.ids if one not in ids]
    if absent:
        raise AnalysisError(
            f"traces.ids: no utterance {absent[0]!r} in the corpus; the first ones are: "
            f"{', '.join(sorted(ids)[:_NAMED])}."
        )
    nothing: Any = _Views()
    for names in (plan.covariates, plan.confounds):
        columns = [one for one in names if one not in _HEARD and not one.startswith("egemaps:")]
        covariates(nothing, table, columns)
