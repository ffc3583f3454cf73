"""Plan the comparisons, run them one after another, and write down what was found."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.audio import probe
from featurestore.benchmarks.inputs import COPIES, THREADS, Inputs
from featurestore.benchmarks.limits import Limits, measure_limits
from featurestore.benchmarks.report import Report, Row, machine_facts
from featurestore.benchmarks.speech import make_speech, spread
from featurestore.benchmarks.stages import FAMILIES, NotMeasuredError, Stage, stages_of
from featurestore.benchmarks.stages_network import torch_device
from featurestore.benchmarks.timing import OtherProcesses, alternate
from featurestore.checkpoint import load_weights
from featurestore.corpus import read_manifest
from featurestore.encoder import load_encoder
from featurestore.errors import FeatureStoreError
from featurestore.files import replacing

QUICK_UTTERANCES, QUICK_REPEATS = 20, 1
_SECONDS_EACH = 3.5  # of an utterance, before any is there to measure
_PREPARATION_S, _LIMITS_S = 25.0, 15.0
_INGEST_SPEED = 350  # times real time, on two cores


@dataclass(frozen=True)
class BenchConfig:
    """What to measure.

    Attributes:
        manifest: of the corpus to listen to; None has one made.
        families: of stages; all by default.
        utterances: at most so many, spread evenly over the manifest.
        repeats: runs of each side.
        quick: small sizes that prove that everything runs.
        weights: of the network; they do not change its speed.
    """

    manifest: str | None = None
    families: tuple[str, ...] = tuple(FAMILIES)
    utterances: int = 400
    repeats: int = 5
    quick: bool = False
    weights: str = "default"

    def __post_init__(self) -> None:
        """Refuse nothing to measure.

        Raises:
            FeatureStoreError: no utterances, runs or stages, or a stage that there is not.
        """
        if self.utterances < 1 or self.repeats < 1 or not self.families:
            raise FeatureStoreError(
                f"{self.utterances} utterances, {self.repeats} repeats and {len(self.families)} "
                "stages are nothing to measure; each is at least 1"
            )
        stages_of(self.families)

    @property
    def sized(self) -> BenchConfig:
        """The same, made small if it is quick."""
        if not self.quick:
            return self
        return replace(
            self,
            utterances=min(self.utterances, QUICK_UTTERANCES),
            repeats=min(self.repeats, QUICK_REPEATS),
        )


@dataclass(frozen=True)
class BenchPlan:
    """What will be measured.

    Attributes:
        config: as given, made small if it is quick.
        stages: comparisons, in order.
        table: rows of the manifest that are listened to; None where speech will be made.
        seconds: about how long it takes, on two cores.
    """

    config: BenchConfig
    stages: Sequence[Stage]
    table: pd.DataFrame | None
    seconds: float

    @property
    def steps(self) -> int:
        """Comparisons, and the limits."""
        return len(self.stages) + ("limits" in self.config.families)

    def to_text(self) -> str:
        """The plan for people."""
        config = self.config
        source = config.manifest or "speech that is made for it"
        count = config.utterances if self.table is None else len(self.table)
        lines = [
            f"Plan: {count:,} utterances of {source}, {config.repeats} "
            f"{'run' if config.repeats == 1 else 'runs'} of each side in turns, about "
            f"{max(1, round(self.seconds / 60))} min on two idle cores."
        ]
        for family in config.families:
            beside = [one.reference for one in self.stages if one.family == family]
            lines.append(
                f"  {family:<10} {FAMILIES[family]}"
                + "".join(f"\n      beside {b}" for b in beside)
            )
        return "\n".join(lines)


def plan_bench(config: BenchConfig) -> BenchPlan:
    """Decide what to measure, before any of it.

    Raises:
        ManifestError: a bad manifest.
        FeatureStoreError: an unknown stage.
    """
    config = config.sized
    stages = stages_of(config.families)
    table = None
    if config.manifest is not None:
        table = spread(read_manifest(config.manifest), config.utterances)
    count = config.utterances if table is None else len(table)
    seconds = _PREPARATION_S + _LIMITS_S * ("limits" in config.families)
    if "reading" in config.families and not config.quick:
        seconds += COPIES * count * _SECONDS_EACH / _INGEST_SPEED
    for one in stages:
        seconds += one.seconds(count * _SECONDS_EACH, utterances=count, repeats=config.repeats)
    return BenchPlan(config, stages, table, seconds)


def run_bench(
    plan: BenchPlan, folder: Path, *, tick: Callable[[float], None] = lambda _: None
) -> Report:
    """Measure what was planned.

    Args:
        plan: as from `plan_bench`.
        folder: on the disk to measure; what is made in it for that is removed again.
        tick: told 1 after every step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench-") as scratch:
        inputs, name = _inputs(plan, Path(scratch))
        facts = machine_facts(torch_device=torch_device(), threads=THREADS)
        limits: Limits | None = None
        if "limits" in plan.config.families:
            limits = measure_limits(Path(scratch), quick=plan.config.quick)
            tick(1)
        rows = []
        for one in plan.stages:
            rows.append(measure(one, inputs, repeats=plan.config.repeats))
            tick(1)
        corpus = {
            "name": name,
            "utterances": len(inputs.table),
            "audio_s": inputs.audio_s,
            "rates": sorted({probe(path).rate for path, _, _ in inputs.segments}),
        }
        return Report(facts, corpus, plan.config.repeats, limits, rows, inputs.compiled)


def _inputs(plan: BenchPlan, scratch: Path) -> tuple[Inputs, str]:
    weights = load_weights(plan.config.weights)
    table, name = plan.table, str(plan.config.manifest)
    if table is None:
        table, name = make_speech(scratch / "speech", utterances=plan.config.utterances)
    kept = scratch / "kept"
    kept.mkdir()
    encoder = load_encoder(weights)
    return Inputs(table, encoder, weights.tensors, kept, plan.config.quick), Path(name).name


def measure(one: Stage, inputs: Inputs, *, repeats: int) -> Row:
    """Run a stage."""
    if one.most is not None:
        inputs, repeats = inputs.fewer(one.most[0]), min(repeats, one.most[1])
    row = Row(
        family=one.family,
        stage=one.title,
        reference=one.reference,
        against=one.against,
        utterances=len(inputs.table),
        audio_s=inputs.audio_s,
        limit=one.limit,
        by_call=one.by_call,
    )
    try:
        contest = one.make(inputs)
        busy = OtherProcesses()
        try:
            ours, theirs = alternate(contest, repeats=repeats, scratch=inputs.folder)
        finally:
            contest.done()
    except NotMeasuredError as reason:
        return replace(row, missing=str(reason))
    except (FeatureStoreError, OSError) as reason:  # a full disk costs one stage, not all of them
        return replace(row, missing=str(reason), failed=True)
    return replace(
        row,
        audio_s=contest.audio_s,
        ours=ours,
        theirs=theirs,
        missing=contest.theirs if isinstance(contest.theirs, str) else "",
        agreement=contest.agreement,
        # Processes of either side would count as others.
        disturbance=None if one.family in ("ingest", "egemaps") else busy.cores(),
    )


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write bench.json, bench.md, bench.png and bench.svg.

    Returns:
        Their paths; no plots where nothing was timed.
    """
    from featurestore.benchmarks.plot import draw

    texts = {
        "bench.json": json.dumps(_plain(report.to_dict()), indent=1, ensure_ascii=False) + "\n",
        "bench.md": report.to_markdown(),
    }
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [*(folder / name for name in texts), *draw(report, folder)]


def _plain(values: Any) -> Any:
    if isinstance(values, dict):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return values.item() if hasattr(values, "item") else values
