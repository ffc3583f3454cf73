"""What was found, in sentences, each with its interval. None says more than its numbers do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from featurestore.report.wording import LEAST_PERMUTATIONS, end_digits, raised
from featurestore.study.config import Pair

_LOWER_IS_BETTER = "mse"
INTERVALS = (
    "Intervals in brackets are of 95 %; p of a comparison is that of swapping its two sides, p of "
    "a change that of Student's t over speakers."
)
_MINUS = "\N{MINUS SIGN}"


def statements(tables: Mapping[str, pd.DataFrame], *, headlines: Sequence[Pair] = ()) -> list[str]:
    """Sentences about maps, speakers, layers, predictions and comparisons, as far as there are any.

    Args:
        tables: of a study's findings.
        headlines: comparisons that are told; the others are in their table.
    """
    empty = pd.DataFrame()
    found = [
        *_maps(tables.get("thresholds", empty), tables.get("maps", empty)),
        *_speakers(tables.get("stability", empty)),
        *_permutations(tables.get("permutations", empty)),
        *_comparisons(tables.get("comparisons", empty), headlines),
        *_trends(tables.get("trends", empty)),
    ]
    return [*found, *([INTERVALS] if found else [])]


def number(value: float, digits: int = 3, *, signed: bool = True) -> str:
    """A value with a real minus sign."""
    if not math.isfinite(value):
        return "undefined"
    return f"{value:{'+' if signed else ''}z.{digits}f}".replace("-", _MINUS)


def span(low: float, high: float) -> str:
    """A 95 % interval in brackets."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "(too few speakers for an interval)"
    ends = (number(end, end_digits(end)) for end in (low, high))
    return f"({' to '.join(ends)})"


def probability(p: float) -> str:
    """A p value as it is written in a sentence."""
    if not math.isfinite(p):
        return "p undefined"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _maps(thresholds: pd.DataFrame, maps: pd.DataFrame) -> Iterator[str]:
    for row in thresholds.to_dict("records"):
        target = row["target"]
        if not row["defined"]:
            yield f"No unit has a defined correlation with {target}."
            continue
        own = maps[maps["target"] == target]
        best = own.loc[own["r"].abs().idxmax()]
        place = f", unit {int(best['unit'])} of layer {int(best['layer'])}" if "unit" in own else ""
        text = (
            f"{row['significant']:,} of {row['defined']:,} units follow {target} (q < 0.05, random "
            f"effects over {row['speakers']} speakers); the strongest r is "
            f"{number(best['r'])} {span(best['low'], best['high'])}{place}."
        )
        if row["covariates"]:
            text += f" Given {row['covariates']}, {row['partial_significant']:,} still do."
        if row["permutations"] >= LEAST_PERMUTATIONS and math.isfinite(row["threshold"]):
            text += (
                f" {row['exceeding']:,} units exceed the largest |r within speakers| that shuffled "
                f"labels reach in 5 % of {row['permutations']:,} permutations "
                f"({row['threshold']:.3f})."
            )
        yield text


def _speakers(stability: pd.DataFrame) -> Iterator[str]:
    if stability.empty:
        return
    for target, rows in stability.groupby("target", sort=False):
        counts = rows["verdict"].value_counts()
        shared, own, noisy, undefined = (
            int(counts.get(name, 0)) for name in ("shared", "own", "noisy", "undefined")
        )
        why = "for want of labels, of utterances or of others that are reliable"
        if undefined == len(rows):
            yield f"{raised(target)}: no speaker can be judged, {why}."
            continue
        text = (
            f"{raised(target)}: {shared} of {len(rows) - undefined} speakers show the pattern of "
            f"the others, {own} a reliable one of their own, and of {noisy} the correlations are "
            "too noisy to tell."
        )
        if undefined:
            text += f" {undefined} more cannot be judged, {why}."
        yield text


def _permutations(permutations: pd.DataFrame) -> Iterator[str]:
    for row in permutations.to_dict("records"):
        if row["measure"] != "ccc" or not math.isfinite(row["p"]):
            continue
        yield (
            f"{raised(row['target'])}: {row['feature_set']} reaches a CCC of "
            f"{number(row['observed'], signed=False)} on speakers held out, with the best of the "
            f"penalties; with labels shuffled within speakers, 95 % of {row['permutations']:,} "
            f"permutations reach {number(row['null_low'])} to {number(row['null_high'])} the same "
            f"way ({probability(row['p'])})."
        )


def _comparisons(comparisons: pd.DataFrame, headlines: Sequence[Pair]) -> Iterator[str]:
    if comparisons.empty:
        return
    for keys, rows in comparisons.groupby(["first", "second", "target"], sort=False):
        first, second, target = map(str, keys)
        if Pair(first, second) in headlines:
            told = [row for row in rows.to_dict("records") if row["measure"] in ("mse", "ccc")]
            yield compared(first, second, target, [r for r in told if math.isfinite(r["low"])])


def compared(first: str, second: str, target: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One comparison: in which measure one is better, by how much, and where that cannot be told.

    Args:
        first: name of a feature set.
        second: name of another one.
        target: what is predicted.
        rows: of `compare`, one per measure.
    """
    if not rows:
        return f"{raised(target)}: whether {first} or {second} predicts better is undefined."
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(_outcome(row), []).append(
            f"{str(row['measure']).upper()} {number(row['difference'])} "
            f"{span(row['low'], row['high'])}, {probability(row['p'])}"
        )
    parts = [f"{said} ({'; '.join(values)})" for said, values in found.items()]
    joined = ", but ".join(parts)
    return (
        f"{raised(target)}: {first} against {second}, differences over "
        f"{rows[0]['speakers']} speakers: {joined}."
    )


def _outcome(row: Mapping[str, Any]) -> str:
    if not (row["low"] > 0 or row["high"] < 0):
        return "not to be told apart"
    better = (row["difference"] < 0) == (row["measure"] == _LOWER_IS_BETTER)
    return ("better" if better else "worse") + _doubt(row["p"], "swap")


def _doubt(p: float, test: str) -> str:
    """What has to be added where an interval leaves out zero, and a test does not agree."""
    return f" by the interval, not by the {test} test" if p >= 0.05 else ""


def _trends(trends: pd.DataFrame) -> Iterator[str]:
    for row in trends.to_dict("records"):
        if not math.isfinite(row["low"]):
            continue
        change = (
            f"by {number(row['slope'])} {span(row['low'], row['high'])}, {probability(row['p'])}"
        )
        clear = row["low"] > 0 or row["high"] < 0
        doubt = _doubt(row["p"], "t")
        of = f"({row['features']})"
        if " - " in row["target"]:
            first, second = row["target"].split(" - ", 1)
            end = (doubt and f",{doubt}") if clear else ", not to be told from none"
            yield (
                f"From the first layer to the last, the CCC of {first} changes {change}, against "
                f"that of {second}{end} {of}."
            )
        else:
            way = "rises" if row["slope"] > 0 else "falls"
            end = f"it {way} towards the text{doubt}" if clear else "neither end is clearly better"
            yield (
                f"From the first layer to the last, the CCC of {row['target']} changes {change}: "
                f"{end} {of}."
            )
