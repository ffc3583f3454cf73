"""A study file: corpus, views, feature sets, targets, folds, models and seeds, in TOML."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from featurestore.errors import AnalysisError
from featurestore.types import NETWORK, VIEWS

T = TypeVar("T")

OWN = "own"  # table of the sets that a study adds


@dataclass(frozen=True)
class IngestPlan:
    """What is put into the store.

    Attributes:
        weights: of the network, as `featurestore ingest --weights` takes them.
        controls: weights of networks to compare with, such as random:0; their statistics are kept,
            their frames are not.
        views: any of network, mfcc, egemaps.
        captures: of the network; its first one if empty.
        frames: whether every frame is kept, which traces need.
        precision: of the network's arithmetic.
    """

    weights: str = "default"
    controls: tuple[str, ...] = ("random:0", "random:1", "random:2")
    views: tuple[str, ...] = VIEWS
    captures: tuple[str, ...] = ()
    frames: bool = True
    precision: str = "parity"


@dataclass(frozen=True)
class AnalysisPlan:
    """What is asked of the store.

    Attributes:
        targets: numeric labels.
        view: name or kind of the network's view; where there are several, by default the only one
            whose weights are not random.
        capture: of the network; the view's first one if empty.
        folds: who is held out: speaker, speaker:K, session or another column.
        covariates: taken out of the partial map.
        confounds: columns of the confound map; duration, loudness, f0 and what is said of the
            speakers, as far as the corpus has them, if empty.
        best: units that a selection keeps, as in the paper.
        same_size: features in the comparisons of equal size; eGeMAPS has 88.
        permutations: of labels within speakers, for maps and for predictions.
        resamples: of speakers, for intervals.
        emotion: column of the category that raters agreed on, for table 2.
        disagreement: its value without a majority.
        seed: of everything random.
    """

    targets: tuple[str, ...] = ("valence", "arousal")
    view: str = NETWORK
    capture: str = ""
    folds: str = "speaker"
    covariates: tuple[str, ...] = ("duration", "loudness")
    confounds: tuple[str, ...] = ()
    best: int = 100
    same_size: int = 88
    permutations: int = 1000
    resamples: int = 9999
    emotion: str = "emotion"
    disagreement: str = "xxx"
    seed: int = 0


@dataclass(frozen=True)
class TracePlan:
    """Which utterances are traced frame by frame.

    Attributes:
        ids: of the utterances; if empty, `count` of them are chosen.
        count: the utterances of the highest, the lowest and in-between labels of the last target,
            each of another speaker.
    """

    ids: tuple[str, ...] = ()
    count: int = 4


@dataclass(frozen=True)
class SetPlan:
    """A feature set that a study adds; see `featurestore.analysis.models.FeatureSet`.

    Attributes:
        name: as printed.
        features: an expression, in which `network` is the study's own view.
        best: how many features each fold keeps; all if 0.
        select: how they are chosen.
        scale: how they are scaled; the model's default if empty.
        model: ols, ridge, svr or pls.
        leaky: choose features on all utterances, to show what that would claim.
    """

    name: str
    features: str
    best: int = 0
    select: str = "f_regression"
    scale: str = ""
    model: str = "ols"
    leaky: bool = False


@dataclass(frozen=True)
class Pair:
    """Two feature sets to compare, by name."""

    first: str
    second: str


@dataclass(frozen=True)
class Study:
    """A study; paths are absolute, or relative to the working directory.

    Attributes:
        store: folder or URL of the store.
        output: folder of the report.
        manifest: of the corpus; "" if the store is there already.
        title: of the report.
        ingest: what is put into the store.
        analysis: what is asked of it.
        traces: which utterances are traced.
        sets: feature sets besides those that every study compares.
        comparisons: of feature sets, besides those that every study makes.
    """

    store: str
    output: str
    manifest: str = ""
    title: str = ""
    ingest: IngestPlan = field(default_factory=IngestPlan)
    analysis: AnalysisPlan = field(default_factory=AnalysisPlan)
    traces: TracePlan = field(default_factory=TracePlan)
    sets: tuple[SetPlan, ...] = ()
    comparisons: tuple[Pair, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in a study file."""
        return dataclasses.asdict(self)


def read_study(path: str | os.PathLike[str]) -> Study:
    """Read a study file.

    Args:
        path: TOML; paths in it are relative to its folder, those of weights too where there is
            such a file.

    Raises:
        AnalysisError: not TOML, or a key or value that a study does not have; names it, and what is
            accepted.
    """
    name, folder = os.fspath(path), Path(path).resolve().parent
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AnalysisError(f"{name} is not a study file: {error}") from error
    study = from_dict(table, name=name)
    placed: dict[str, Any] = {
        key: _place(getattr(study, key), folder)
        for key in ("store", "output", "manifest")
        if getattr(study, key)
    }
    plan = dataclasses.replace(
        study.ingest,
        weights=_weights(study.ingest.weights, folder),
        controls=tuple(_weights(one, folder) for one in study.ingest.controls),
    )
    return dataclasses.replace(study, ingest=plan, **placed)


def from_dict(table: Mapping[str, Any], *, name: str = "the study") -> Study:
    """A study from plain values.

    Raises:
        AnalysisError: as `read_study`.
    """
    study = _build(Study, table, name)
    analysis = study.analysis
    for key in ("best", "same_size", "resamples"):
        if getattr(analysis, key) < 1:
            raise AnalysisError(
                f"{name}: analysis.{key} = {getattr(analysis, key)}; give 1 or more."
            )
    for key, value in (
        ("analysis.permutations", analysis.permutations),
        ("analysis.seed", analysis.seed),
        ("traces.count", study.traces.count),
    ):
        if value < 0:
            raise AnalysisError(f"{name}: {key} = {value}; give 0 or more.")
    if not analysis.targets:
        raise AnalysisError(f"{name}: analysis.targets is empty; name a numeric label.")
    return dataclasses.replace(
        study,
        analysis=dataclasses.replace(analysis, targets=_once(analysis.targets)),
        traces=dataclasses.replace(study.traces, ids=_once(study.traces.ids)),
    )


def _once(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _place(value: str, folder: Path) -> str:
    from featurestore.storage import is_url

    return value if is_url(value) else str(folder / value)


def _weights(value: str, folder: Path) -> str:
    """Weights that are a file or folder beside the study, by its path; other names as they are."""
    from featurestore.registry import DEFAULT, registered_names

    kind, colon, rest = value.rpartition(":")
    if kind == "random" or value == DEFAULT or value in registered_names() or not rest:
        return value
    beside = folder / rest
    there = beside.exists() or Path(f"{beside}.index").exists()
    return f"{kind}{colon}{beside}" if there else value


def _build(kind: type[T], table: Any, name: str, inside: str = "") -> T:
    """A dataclass from a table, refusing what it does not have."""
    if not isinstance(table, Mapping):
        raise AnalysisError(f"{name}: {inside or 'it'} is {table!r}; a table was expected.")
    hints = typing.get_type_hints(kind)
    names = [one.name for one in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in table:
        if key not in names:
            raise AnalysisError(
                f"{name}: there is no {_dotted(inside, key)!r}; accepted"
                f"{f' in {inside}' if inside else ''}: {', '.join(names)}."
            )
    missing = [
        one.name
        for one in dataclasses.fields(kind)  # type: ignore[arg-type]
        if one.default is dataclasses.MISSING
        and one.default_factory is dataclasses.MISSING
        and one.name not in table
    ]
    if missing:
        raise AnalysisError(f"{name}: {_dotted(inside, missing[0])!r} is missing.")
    values = {
        key: _value(hints[key], value, name, _dotted(inside, key)) for key, value in table.items()
    }
    return kind(**values)


def _dotted(inside: str, key: str) -> str:
    return f"{inside}.{key}" if inside else key


def _value(hint: Any, value: Any, name: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, name, key)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        of = typing.get_args(hint)[0]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise AnalysisError(f"{name}: {key} = {value!r}; a list was expected.")
        return tuple(_value(of, one, name, f"{key}[{i}]") for i, one in enumerate(value))
    wanted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    # In Python, true is a whole number too.
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        said = " or ".join(one.__name__ for one in wanted)
        raise AnalysisError(f"{name}: {key} = {value!r}; expected: {said}.")
    return value
