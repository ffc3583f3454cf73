"""The tables of the page, as text in cells."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from featurestore.analysis.scores import summarise
from featurestore.report.contents import Contents
from featurestore.report.paper import SOURCE, printed
from featurestore.report.wording import end_digits, raised

NONE = "\N{EN DASH}"  # an undefined value
_NUMBER = r"(< )?[+\u2212]?[0-9][0-9,.]*(e[+\u2212][0-9]+)?"
_NUMERIC = re.compile(f"{_NUMBER}( to {_NUMBER})?|{NONE}")
MEASURES = {"mse": "MSE", "ccc": "CCC", "ccc_pooled": "CCC pooled", "r2": "R2"}

_SUMMARY = {
    "MSE": "mse_mean",
    "Variance": "mse_variance",
    "SD": "mse_std",
    "Weighted": "mse_weighted",
    "CCC": "ccc_mean",
    "CCC pooled": "ccc_pooled",
    "R2": "r2_mean",
}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        caption: what it shows and how to read it.
        columns: headings.
        rows: cells, as many as headings.
        groups: headings over several columns, with the number of columns of each; none by default.
        headers: how many cells at the start of a row name it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[tuple[str, int]] = ()
    headers: int = 1

    @property
    def numeric(self) -> list[bool]:
        """(column,) whether its cells are to be aligned as numbers."""
        cells = zip(*self.rows, strict=True)
        return [all(_NUMERIC.fullmatch(cell) for cell in column) for column in cells]


def number(value: float, *, digits: int = 3, signed: bool = False, bounded: bool = False) -> str:
    """A number with a real minus sign; a dash where it is undefined.

    Args:
        value: to be printed.
        digits: after the point.
        signed: whether a plus is printed too.
        bounded: whether it is a correlation or the like, of which a small value is about zero.
    """
    if value is None or not math.isfinite(value):
        return NONE
    small = abs(value) < 10**-digits and not (signed or bounded)
    if value and (abs(value) >= 100_000 or small):
        return f"{value:.2e}".replace("-", "\u2212")
    text = f"{value:{'+' if signed else ''}z,.{digits}f}"
    return text.replace("-", "\u2212")


def interval(low: float, high: float, *, signed: bool = True) -> str:
    """Both ends of an interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NONE
    if not signed:
        return f"{number(low)} to {number(high)}"
    return " to ".join(number(end, digits=end_digits(end), signed=True) for end in (low, high))


def probability(p: float) -> str:
    """A p value; those below a thousandth are told as such."""
    if p is None or not math.isfinite(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def cell(value: Any, *, digits: int = 3) -> str:
    """Whatever a data frame holds, as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NONE if value is None or value is pd.NA else str(value)
    return f"{value:,}" if isinstance(value, int) else number(value, digits=digits)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries of plain Python values."""
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def speakers(contents: Contents) -> Table:
    """One row per speaker, with what is known of the labels."""
    table = contents.speakers
    labels = {f"{t}_{what}" for t in contents.targets for what in ("mean", "sd", "missing")}
    plain = [name for name in table.columns if name not in labels]
    targets = [t for t in contents.targets if f"{t}_mean" in table]
    rows = [
        [cell(row[name], digits=2) for name in plain]
        + [
            text
            for t in targets
            for text in (
                number(row[f"{t}_mean"], digits=2),
                number(row[f"{t}_sd"], digits=2),
                cell(row[f"{t}_missing"], digits=0),
            )
        ]
        for row in records(table)
    ]
    return Table(
        "Speakers, with mean and standard deviation (SD) of their labels and the number of "
        "utterances without one.",
        [raised(name) for name in plain] + ["Mean", "SD", "Missing"] * len(targets),
        rows,
        groups=[("", len(plain)), *((raised(t), 3) for t in targets)],
    )


def stability(contents: Contents) -> Table:
    """How alike the correlations of one speaker and those of the others are."""
    columns = {
        "Utterances": "n",
        "SD of labels": "label_sd",
        "Mean |r|": "mean_abs_r",
        "By chance": "chance_abs_r",
        "Reliability": "reliability",
        "Similarity": "similarity",
        "Ceiling": "ceiling",
        "First layers": "first_abs_r",
        "Last layers": "last_abs_r",
    }
    rows = [
        [
            str(row["target"]),
            str(row["speaker"]),
            *(cell(row[name]) for name in columns.values()),
            str(row["verdict"]),
        ]
        for row in records(contents.stability)
    ]
    return Table(
        "Correlations of each speaker. Similarity: correlation of a speaker's map with that of the "
        "others together. Ceiling: the similarity that its reliability (between halves of the "
        "speaker's utterances) allows. First and last layers: mean |r| of three layers each.",
        ("Target", "Speaker", *columns, "Verdict"),
        rows,
        headers=2,
    )


def confounds(contents: Contents) -> Table:
    """Where each covariate is strongest."""
    rows = []
    for covariate, group in contents.confounds.groupby("covariate", sort=False):
        means = group.dropna(subset=["mean_abs_r"])
        peaks = group.dropna(subset=["max_abs_r"])
        if means.empty or peaks.empty:
            continue
        mean = means.loc[means["mean_abs_r"].idxmax()]
        peak = peaks.loc[peaks["max_abs_r"].idxmax()]
        rows.append(
            [
                str(covariate),
                str(mean["kind"]),
                number(mean["mean_abs_r"]),
                layer_name(contents, mean["layer"]),
                number(peak["max_abs_r"]),
                f"{layer_name(contents, peak['layer'])}, unit {int(peak['unit'])}",
                number(mean["chance"]),
            ]
        )
    return Table(
        "The layer that follows each covariate most, the unit that does, and the mean |r| of "
        "unrelated values.",
        ("Covariate", "Over", "Mean |r|", "in layer", "Largest |r|", "of", "By chance"),
        rows,
    )


def layer_name(contents: Contents, layer: float) -> str:
    """Name of a layer by its index."""
    index = int(layer)
    return str(contents.layer_names[index]) if index < len(contents.layer_names) else str(index)


def curves(contents: Contents) -> Table:
    """The numbers of the layer curves."""
    rows = [
        [
            str(row["target"]),
            MEASURES.get(row["measure"], str(row["measure"])),
            str(row["features"]),
            layer_name(contents, row["layer"]),
            number(row["value"]),
            interval(row["low"], row["high"], signed=False),
        ]
        for row in records(contents.curves)
    ]
    return Table(
        "Values of the curves, with intervals by a bootstrap over speakers.",
        ("Target", "Measure", "Features", "Layer", "Value", "Interval"),
        rows,
        headers=4,
    )


def trends(contents: Contents) -> Table:
    """Whether the curves rise or fall."""
    rows = [
        [
            str(row["target"]),
            str(row["features"]),
            number(row["slope"], signed=True),
            interval(row["low"], row["high"]),
            probability(row["p"]),
            probability(row["wilcoxon_p"]),
            cell(row["speakers"]),
        ]
        for row in records(contents.trends)
    ]
    return Table(
        "Change of CCC from the first layer to the last, along a straight line fitted to each "
        "speaker's curve: mean over speakers with its bootstrap interval, p of Student's t and of "
        "Wilcoxon's signed ranks. A row of two targets is the difference between them.",
        ("Target", "Features", "Change", "Interval", "p", "Wilcoxon p", "Speakers"),
        rows,
        headers=2,
    )


_TITLES = {
    "1": "Table 1",
    "2": "Table 2",
    "pooling": "Pooling over frames",
    "baselines": "Baselines",
    "controls": "Controls",
    "own": "Sets of this study",
}


def results(contents: Contents) -> list[tuple[str, Table]]:
    """A table per name in the results, in their order, beside what the paper printed."""
    if contents.results.empty:
        return []
    summary = summarise(contents.results)
    names = summary["table"].astype(str)
    return [(name, _regression(name, summary[names == name])) for name in dict.fromkeys(names)]


def _regression(name: str, summary: pd.DataFrame) -> Table:
    rows, beside = [], False
    for target, group in summary.groupby("target", sort=False):
        for row in records(group):
            known = printed(name, target=str(target), feature_set=str(row["feature_set"]))
            beside = beside or known is not None
            rows.append(
                [
                    str(target),
                    str(row["feature_set"]),
                    *(
                        number(row[column], bounded=not column.startswith("mse"))
                        for column in _SUMMARY.values()
                    ),
                    number(known.mse_mean) if known else NONE,
                    number(known.mse_variance) if known else NONE,
                ]
            )
    counts = [
        f"{raised(target)}: {_counts(group['utterances'])} utterances, "
        f"{_counts(group['folds'])} folds."
        for target, group in summary.groupby("target", sort=False)
    ]
    caption = (
        f"{_TITLES.get(name, name)}. Regression whose selection, scaling and penalty are fitted "
        f"without the speakers held out. {' '.join(counts)} MSE in squared units of the label, "
        "mean, variance and standard deviation (SD) over folds, and weighted by utterances; CCC "
        "(Lin 1989) and R2 are means over speakers, CCC pooled is that of all held-out predictions "
        "together."
    )
    columns = ["Target", "Features", *_SUMMARY]
    if not beside:
        return Table(caption, columns, [row[:-2] for row in rows], headers=2)
    return Table(
        caption + " The two columns on the right are of another corpus and other weights: to be "
        "compared in kind, not in value.",
        [*columns, "MSE", "Variance"],
        rows,
        groups=[("", 2), ("This corpus", len(_SUMMARY)), (SOURCE, 2)],
        headers=2,
    )


def _counts(values: pd.Series) -> str:
    """The number that all feature sets share, or the range of those that they have."""
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def comparisons(contents: Contents) -> Table:
    """Paired differences with intervals."""
    rows = [
        [
            str(row["target"]),
            MEASURES.get(row["measure"], str(row["measure"])),
            str(row["first"]),
            str(row["second"]),
            number(row["difference"], signed=True),
            interval(row["low"], row["high"]),
            probability(row["p"]),
            probability(row["wilcoxon_p"]),
            number(row["effect"], digits=2, signed=True),
            interval(row["effect_low"], row["effect_high"]),
            number(row["first_value"]),
            number(row["second_value"]),
            cell(row["speakers"]),
        ]
        for row in records(contents.comparisons)
    ]
    return Table(
        "First minus second, paired over held-out speakers, with bootstrap intervals over speakers "
        "(BCa). p: two-sided, swapping the two within speakers; and of Wilcoxon's signed ranks. "
        "Effect: mean difference over the standard deviation of the differences, with its "
        "interval. Not corrected for the number of comparisons.",
        (
            *("Target", "Measure", "First", "Second", "Difference", "Interval", "p", "Wilcoxon p"),
            *("Effect", "Its interval", "First value", "Second value", "Speakers"),
        ),
        rows,
        headers=4,
    )


def permutations(contents: Contents) -> Table:
    """What was observed, and what shuffled labels give."""
    rows = [
        [
            str(row["target"]),
            str(row["feature_set"]),
            MEASURES.get(row["measure"], str(row["measure"])),
            number(row["observed"]),
            number(row["null_mean"]),
            interval(row["null_low"], row["null_high"]),
            probability(row["p"]),
            cell(row["permutations"]),
        ]
        for row in records(contents.permutations)
    ]
    return Table(
        "Observed values beside those of labels shuffled within speakers.",
        (
            *("Target", "Features", "Measure", "Observed", "Mean of shuffled"),
            *("Interval of shuffled", "p", "Permutations"),
        ),
        rows,
        headers=3,
    )
