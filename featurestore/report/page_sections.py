"""The sections of the page: what each says, and which figures and tables it has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from featurestore.report import page_figures, page_tables
from featurestore.report.contents import Contents, Trace
from featurestore.report.page_data import has_map
from featurestore.report.page_figures import Spec
from featurestore.report.page_tables import Table, number
from featurestore.report.page_traces import by_utterance, utterance
from featurestore.report.wording import LEAST_PERMUTATIONS, covariates_of, raised

_MEASURES = ("ccc", "ccc_pooled", "mse", "r2")  # in the order in which figures are shown
_CONTROLS = "controls"  # the table of results that is shown beside permutations


@dataclass(frozen=True)
class Figure:
    """A picture and what it shows in words.

    Attributes:
        name: by which the script finds it.
        title: what it shows, above it.
        spec: as plotly.js takes it.
    """

    name: str
    title: str
    spec: Spec


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        name: its anchor.
        title: its heading.
        short: the same in the navigation.
        kind: which part of the template it is drawn by.
        paragraphs: before the figures.
        figures: in order.
        tables: below the figures.
        details: tables that are closed until they are asked for.
    """

    name: str
    title: str
    short: str
    kind: Literal["plain", "corpus", "maps", "traces"] = "plain"
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    details: Sequence[Table] = ()


@dataclass(frozen=True)
class Map:
    """What is said about the map of a target.

    Attributes:
        target: label.
        counts: how many units stand out, "" if that was not counted.
        partial: whether there is a partial map that is another one.
    """

    target: str
    counts: str = ""
    partial: bool = True


@dataclass(frozen=True)
class Utterance:
    """What is said about an utterance whose output is drawn over time."""

    label: str
    text: str
    figure: Figure = field(repr=False)


def sections(contents: Contents) -> list[Section]:
    """All that have something to show, in the order of the page."""
    found = [
        _corpus(contents),
        _maps(contents),
        _stability(contents),
        _confounds(contents),
        _curves(contents),
        _regression(contents),
        _comparisons(contents),
        _controls(contents),
        _traces(contents),
    ]
    return [section for section in found if section is not None]


def _corpus(contents: Contents) -> Section | None:
    if not contents.corpus and contents.speakers.empty:
        return None
    tables = [] if contents.speakers.empty else [page_tables.speakers(contents)]
    return Section("corpus", "Corpus", "Corpus", "corpus", tables=tables)


def maps(contents: Contents) -> list[Map]:
    """One for every target whose correlations are known."""
    found = []
    for target in map(str, contents.targets):
        if has_map(contents.maps, target):
            partial = covariates_of(contents.thresholds, target) != ""
            found.append(Map(target, _counts(contents, target), partial))
    return found


def _counts(contents: Contents, target: str) -> str:
    if contents.thresholds.empty:
        return ""
    rows = contents.thresholds[contents.thresholds["target"] == target]
    if rows.empty:
        return ""
    row = rows.iloc[0]
    said = (
        f"Of {int(row['defined']):,} units whose correlation is defined, "
        f"{int(row['significant']):,} have q < 0.05 (pooled over speakers)"
    )
    if given := covariates_of(contents.thresholds, target):
        said += f"; {int(row['partial_significant']):,} of these also given {given}"
    said += "."
    if row["permutations"] >= LEAST_PERMUTATIONS and math.isfinite(row["threshold"]):
        said += (
            f" In 5 % of {int(row['permutations']):,} permutations of labels within speakers, the "
            f"largest |r within speakers| of all units exceeds {number(row['threshold'])}."
        )
    return said


def _maps(contents: Contents) -> Section | None:
    if not maps(contents):
        return None
    paragraphs = [
        "A row is a layer, the one nearest to the audio at the bottom, and a column a unit. Colour "
        "is the correlation of the unit's pooled value with the label: red where it rises with the "
        "label, blue where it falls, grey where it is undefined.",
        "q is the rate of false discoveries among units at least as significant; p_max the share "
        "of permutations in which the largest |r within speakers| of all units is as large as this "
        "one's; I\N{SUPERSCRIPT TWO} the part of the spread between speakers that sampling does "
        "not explain.",
    ]
    return Section("maps", "Which units follow the labels", "Maps", "maps", paragraphs)


def _stability(contents: Contents) -> Section | None:
    if contents.stability.empty:
        return None
    figures = [
        Figure(
            f"stability-{index}",
            f"{raised(target)}: similarity of each speaker to the others",
            page_figures.stability(contents, target),
        )
        for index, target in enumerate(_targets(contents, contents.stability["target"]))
    ]
    paragraphs = [
        "A marker is how similar a speaker's map of correlations is to that of the other speakers, "
        "its shape the verdict; the upright line is the ceiling that the reliability of the "
        "speaker's own map allows. Correlations far left of their ceiling are the speaker's own; a "
        "low ceiling means too few utterances to tell. A verdict is undefined for want of labels, "
        "of utterances or of others that are reliable; what has no similarity has no marker."
    ]
    return Section(
        "stability",
        "Are the correlations those of all speakers?",
        "Speakers",
        paragraphs=paragraphs,
        figures=figures,
        tables=[page_tables.stability(contents)],
    )


def _targets(contents: Contents, present: Sequence[str]) -> list[str]:
    held = {str(target) for target in present}
    return [str(target) for target in contents.targets if str(target) in held]


def _confounds(contents: Contents) -> Section | None:
    if contents.confounds.empty:
        return None
    figures = [
        Figure(
            f"confounds-{index}",
            f"Covariates by layer, {kind}",
            page_figures.confounds(contents, str(kind)),
        )
        for index, kind in enumerate(dict.fromkeys(contents.confounds["kind"]))
    ]
    paragraphs = [
        "Mean |r| of a layer's units with what is not emotion but may go along with it. The dotted "
        "line is the mean |r| that unrelated values show by chance."
    ]
    return Section(
        "confounds",
        "What else the units follow",
        "Confounds",
        paragraphs=paragraphs,
        figures=figures,
        tables=[page_tables.confounds(contents)],
    )


def _curves(contents: Contents) -> Section | None:
    if contents.curves.empty:
        return None
    figures = [
        Figure(
            f"curve-{measure}",
            f"{page_tables.MEASURES.get(measure, measure)} by layer",
            page_figures.curve(contents, measure),
        )
        for measure in _measures(contents.curves["measure"])
    ]
    details = [page_tables.curves(contents)]
    paragraphs = [
        "Each point is a ridge regression on one layer alone, speakers held out. Bands are "
        "bootstrap intervals over speakers."
    ]
    return Section(
        "layers",
        "What each layer predicts",
        "Layers",
        paragraphs=paragraphs,
        figures=figures,
        tables=[] if contents.trends.empty else [page_tables.trends(contents)],
        details=details,
    )


def _measures(present: Sequence[str]) -> list[str]:
    held = [str(name) for name in dict.fromkeys(present)]
    known = [name for name in _MEASURES if name in held]
    return known + [name for name in held if name not in known]


def _regression(contents: Contents) -> Section | None:
    tables = [table for name, table in page_tables.results(contents) if name != _CONTROLS]
    if not tables:
        return None
    return Section("tables", "Regression on feature sets", "Tables", tables=tables)


def _comparisons(contents: Contents) -> Section | None:
    table = contents.comparisons
    if table.empty:
        return None
    present = set(zip(table["target"].map(str), table["measure"].map(str), strict=True))
    figures = [
        Figure(
            f"forest-{target_index}-{measure}",
            f"{raised(target)}: differences in {page_tables.MEASURES.get(measure, measure)}",
            page_figures.forest(contents, target, measure),
        )
        for measure in _measures(table["measure"])
        for target_index, target in enumerate(_targets(contents, table["target"]))
        if (target, measure) in present
    ]
    return Section(
        "comparisons",
        "Differences between feature sets",
        "Comparisons",
        paragraphs=[
            "Markers are differences and lines their intervals. A filled circle favours the first "
            "(a higher CCC, a lower MSE) and a square the second; a hollow circle is a difference "
            "whose interval includes zero, and a triangle one that is farther out than there is "
            "room."
        ],
        figures=figures,
        tables=[page_tables.comparisons(contents)],
    )


def _controls(contents: Contents) -> Section | None:
    tables = [table for name, table in page_tables.results(contents) if name == _CONTROLS]
    figures, paragraphs = [], []
    if not contents.permutations.empty:
        paragraphs = [
            "The diamond is what was observed, with the penalty of ridge regression that is best "
            "on the utterances held out. The pale bar is the interval of the same analysis, choice "
            "of the penalty included, on labels shuffled within speakers, the upright line its "
            "mean."
        ]
        tables.append(page_tables.permutations(contents))
        figures = [
            Figure(
                f"permutations-{measure}",
                f"{page_tables.MEASURES.get(measure, measure)}: observed, and with shuffled labels",
                page_figures.permutations(contents, measure),
            )
            for measure in _measures(contents.permutations["measure"])
        ]
    if not tables:
        return None
    return Section(
        "controls",
        "Controls and permutations",
        "Controls",
        paragraphs=paragraphs,
        figures=figures,
        tables=tables,
    )


def _traces(contents: Contents) -> Section | None:
    if not contents.traces:
        return None
    paragraphs = [
        "A linear model applied to every frame of an utterance of a speaker whom it was not fitted "
        "to, under waveform and log-mel spectrogram where the audio is at hand. The solid line is "
        "the output by frame; its mean, the dashed line, is the prediction for the utterance, and "
        "the dotted line is the label. The model was fitted to means, and single frames lie far "
        "outside of them: the shape of the curve and its mean say something, the height of a peak, "
        "or of silence, does not."
    ]
    return Section("traces", "From frame to frame", "Traces", "traces", paragraphs)


def _over_time(traces: Sequence[Trace]) -> str:
    """What the figure of an utterance shows, for those who do not see it."""
    said = [
        f"{trace.target} predicted {number(trace.predicted, digits=2)}, "
        f"label {number(trace.truth, digits=2)}"
        for trace in traces
    ]
    return f"Output of the model over time: {'; '.join(said)}"


def utterances(contents: Contents) -> list[Utterance]:
    """What can be chosen among the traces."""
    return [
        Utterance(
            f"{group[0].id} (speaker {group[0].speaker}; {group[0].features})",
            group[0].text,
            Figure(
                f"trace-{index}",
                _over_time(group),
                utterance(group),
            ),
        )
        for index, group in enumerate(by_utterance(contents.traces))
    ]
