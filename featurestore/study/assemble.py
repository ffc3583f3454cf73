"""Findings of a study as the contents of a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from featurestore.analysis.features import is_numeric, label_values, text_values
from featurestore.analysis.trace import Trace
from featurestore.report.contents import Contents, Scatter
from featurestore.report.wording import raised
from featurestore.study.analyses import Findings
from featurestore.study.config import Study
from featurestore.study.sets import headlines, units_of
from featurestore.study.statements import statements
from featurestore.study.views import ViewFacts, caveats_of

SCATTERED = 400  # utterances behind the scatter plots
_MOST_VALUES = 12  # of a category that is counted


def contents_of(
    findings: Findings,
    study: Study,
    *,
    facts: Mapping[str, ViewFacts],
    traces: Sequence[Trace] = (),
    lineage: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Contents:
    """The contents of a study's report.

    Args:
        findings: of the analyses.
        study: its file.
        facts: of all views of the store.
        traces: of some utterances.
        lineage: store, state, versions and command.
        notes: of whoever ran it.
    """
    plan, table = study.analysis, findings.joined.table
    targets = list(plan.targets)
    tables = findings.tables
    empty = pd.DataFrame()
    told = headlines(plan, tables.get("comparisons", empty))
    return Contents(
        title=study.title or f"{', '.join(raised(t) for t in targets)} in {_named(study)}",
        targets=targets,
        layer_names=list(findings.main.layer_names),
        corpus=corpus_facts(table, targets),
        speakers=speaker_table(table, targets),
        maps=tables.get("maps", empty),
        thresholds=tables.get("thresholds", empty),
        stability=tables.get("stability", empty),
        confounds=tables.get("confounds", empty),
        curves=tables.get("curves", empty),
        results=tables.get("results", empty),
        comparisons=tables.get("comparisons", empty),
        permutations=tables.get("permutations", empty),
        trends=tables.get("trends", empty),
        traces=list(traces),
        scatter=scatter_of(findings, study),
        statements=statements(tables, headlines=[*told, *study.comparisons]),
        caveats=caveats_of(findings.main, table, targets),
        notes=list(dict.fromkeys([*findings.notes, *notes])),
        lineage={
            **lineage,
            **_views_said(findings, facts),
            "study": _json(dataclasses.asdict(plan)),
            **_added(study),
        },
    )


def _added(study: Study) -> dict[str, str]:
    """Sets and comparisons that the study adds, where there are any."""
    added: dict[str, Sequence[Any]] = {"own sets": study.sets, "own comparisons": study.comparisons}
    return {
        name: _json([dataclasses.asdict(one) for one in found])
        for name, found in added.items()
        if found
    }


def _json(values: object) -> str:
    return json.dumps(values, ensure_ascii=False)


def _named(study: Study) -> str:
    return study.store.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]


def _views_said(findings: Findings, facts: Mapping[str, ViewFacts]) -> dict[str, str]:
    said = {"view": findings.main.name, "weights": findings.main.weights_source}
    said["weights fingerprint"] = findings.main.weights
    said["front end"] = findings.main.front_end
    others = [
        f"{one.name} ({one.weights_source})" if one.weights_source else one.name
        for one in facts.values()
        if one.name != findings.main.name
    ]
    return {
        key: value for key, value in {**said, "other views": ", ".join(others)}.items() if value
    }


def corpus_facts(table: xr.Dataset, targets: Sequence[str]) -> dict[str, str]:
    """What the corpus is, by name, as text.

    Args:
        table: coordinates along utterance.
        targets: numeric labels.
    """
    count = table.sizes["utterance"]
    speakers = text_values(table, "speaker")
    found = {"utterances": f"{count:,}", "speakers": f"{len(set(speakers.tolist()) - {''}):,}"}
    if "duration_s" in table.coords:
        seconds = label_values(table, target="duration_s")
        found["hours"] = f"{np.nansum(seconds) / 3600:.2f}"
        low, middle, high = np.nanquantile(seconds, [0.05, 0.5, 0.95])
        found["seconds per utterance"] = f"{middle:.1f} (90 %: {low:.1f} to {high:.1f})"
    for target in targets:
        values = label_values(table, target=target)
        known = values[np.isfinite(values)]
        missing = count - len(known)
        found[target] = (
            f"{known.min():g} to {known.max():g}, mean {known.mean():.2f}, standard deviation "
            f"{known.std(ddof=1) if len(known) > 1 else 0:.2f}"
            + (f"; {missing:,} utterances without" if missing else "")
        )
    for name in ("emotion", "sex", "gender", "language", "corpus"):
        if name in table.coords and not is_numeric(table[name].to_numpy()):
            values, counts = np.unique(text_values(table, name), return_counts=True)
            if len(values) <= _MOST_VALUES:
                pairs = zip(values.tolist(), counts.tolist(), strict=True)
                found[name] = ", ".join(f"{value or 'unknown'} {n:,}" for value, n in pairs)
    return found


def speaker_table(table: xr.Dataset, targets: Sequence[str]) -> pd.DataFrame:
    """One row per speaker: utterances, hours, what is said of the speaker, and labels.

    Args:
        table: coordinates along utterance.
        targets: numeric labels.
    """
    speakers = text_values(table, "speaker")
    about = {
        str(name): text_values(table, str(name))
        for name in table.coords
        if str(name) in ("sex", "gender", "age", "language", "corpus", "session")
    }
    rows: list[dict[str, Any]] = []
    for speaker in sorted(set(speakers.tolist())):
        own = speakers == speaker
        row: dict[str, Any] = {"speaker": speaker, "utterances": int(own.sum())}
        if "duration_s" in table.coords:
            row["hours"] = float(np.nansum(label_values(table, target="duration_s")[own]) / 3600)
        for name, values in about.items():
            row[name] = " / ".join(dict.fromkeys(values[own].tolist()))
        for target in targets:
            values = label_values(table, target=target)[own]
            known = values[np.isfinite(values)]
            row[f"{target}_mean"] = float(known.mean()) if len(known) else np.nan
            row[f"{target}_sd"] = float(known.std(ddof=1)) if len(known) > 1 else np.nan
            row[f"{target}_missing"] = len(values) - len(known)
        rows.append(row)
    return pd.DataFrame(rows)


def scatter_of(findings: Findings, study: Study) -> Scatter | None:
    """Units and labels of some utterances, drawn at random, as many of each speaker as there are.

    Args:
        findings: whose features these are.
        study: whose targets.
    """
    joined, plan = findings.joined, study.analysis
    values = joined.matrix(f"{units_of(findings.main, plan)}.mean")
    layers = len(findings.main.layer_names)
    if not layers:
        return None
    count = len(values)
    picked = np.sort(np.random.default_rng(plan.seed).permutation(count)[:SCATTERED])
    utterances = pd.DataFrame(
        {
            "id": joined.ids[picked],
            "speaker": text_values(joined.table, "speaker")[picked],
            **{t: label_values(joined.table, target=t)[picked] for t in plan.targets},
        }
    )
    shaped = values[picked].reshape(len(picked), layers, -1).astype(np.float32)
    return Scatter(utterances, shaped, total=count)


def chosen_ids(findings: Findings, study: Study) -> list[str]:
    """Utterances to trace: those asked for, or some of high, low and middling labels.

    Args:
        findings: whose utterances these are.
        study: how many.
    """
    if study.traces.ids:
        return list(study.traces.ids)
    table, count = findings.joined.table, study.traces.count
    values = label_values(table, target=study.analysis.targets[-1])
    speakers, ids = text_values(table, "speaker"), findings.joined.ids
    known = np.flatnonzero(np.isfinite(values))
    ordered = known[np.argsort(values[known], kind="stable")]
    found: list[int] = []
    for place in np.linspace(1, 0, count) if count > 1 else [1.0] * count:
        start = round(place * (len(ordered) - 1)) if len(ordered) else 0
        used = {speakers[row] for row in found}
        near = sorted(range(len(ordered)), key=lambda at: (abs(at - start), at))
        fresh = [at for at in near if speakers[ordered[at]] not in used]
        if near:
            found.append(int(ordered[(fresh or near)[0]]))
    return [str(ids[row]) for row in dict.fromkeys(found)]
