"""Study files: what they may say, what they may not, and how the template says it."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.analysis.sets import NAMED, parse
from featurestore.errors import AnalysisError
from featurestore.study.config import (
    AnalysisPlan,
    IngestPlan,
    Pair,
    SetPlan,
    Study,
    TracePlan,
    from_dict,
    read_study,
)
from featurestore.study.run import run_study
from featurestore.study.sets import MEAN_OF_CONTROLS, RIDGE, check_own, listed_pairs, listed_sets
from featurestore.study.template import write_template
from featurestore.study.views import (
    ViewFacts,
    control_views,
    in_view,
    main_view,
    mfcc_view,
    views_of,
)

LEAST = 'store = "a.store"\noutput = "out"\n'
MAIN = ViewFacts("gcu-1a2b", "gcu", "w" * 64, "default:x", ("gate", "skip"), ("a", "b"), True)


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- reading ------------------------------------------------------------------------------------


def test_what_is_left_out_is_at_its_default(tmp_path: Path) -> None:
    found = read_study(write(tmp_path, LEAST))
    assert found == Study(str(tmp_path / "a.store"), str(tmp_path / "out"))
    assert (found.ingest, found.analysis, found.traces) == (
        IngestPlan(),
        AnalysisPlan(),
        TracePlan(),
    )
    assert (found.manifest, found.sets, found.comparisons) == ("", (), ())


def test_paths_are_relative_to_the_file_and_urls_are_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "tuned.safetensors").touch()
    (tmp_path / "model.ckpt-1.index").touch()
    (tmp_path / "hub").mkdir()
    text = f'''
        store = "s3://bucket/a.store"
        output = "../out"
        manifest = "{(tmp_path / "elsewhere" / "m.csv").as_posix()}"
        [ingest]
        weights = "tuned.safetensors"
        controls = ["random:0", "model.ckpt-1", "wav2vec2:hub", "not-there.safetensors", "default"]
    '''
    found = read_study(write(tmp_path, text))
    assert found.store == "s3://bucket/a.store"
    assert Path(found.output).resolve() == tmp_path.parent / "out"
    assert found.manifest == str(tmp_path / "elsewhere" / "m.csv")
    assert found.ingest.weights == str(tmp_path / "tuned.safetensors")
    assert found.ingest.controls == (
        "random:0",
        str(tmp_path / "model.ckpt-1"),
        f"wav2vec2:{tmp_path / 'hub'}",
        "not-there.safetensors",
        "default",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("store = ", ["is not a study file"]),
        (f"{LEAST}colour = 1", ["there is no 'colour'", "manifest", "comparisons"]),
        (f"{LEAST}[analysis]\ntarget = ['a']", ["'analysis.target'", "targets", "resamples"]),
        (f"{LEAST}[ingest]\nweight = 'x'", ["'ingest.weight'", "weights, controls"]),
        (f"{LEAST}[traces]\nid = []", ["'traces.id'", "ids, count"]),
        (f"{LEAST}[analysis]\nseed = true", ["analysis.seed = True", "expected: int"]),
        (f"{LEAST}[analysis]\nbest = 2.0", ["analysis.best = 2.0", "expected: int"]),
        (f"{LEAST}[analysis]\nfolds = 5", ["analysis.folds = 5", "expected: str"]),
        (f"{LEAST}[ingest]\nframes = 1", ["ingest.frames = 1", "expected: bool"]),
        (f"{LEAST}[ingest]\nframes = 'yes'", ["ingest.frames = 'yes'", "expected: bool"]),
        (f"{LEAST}[analysis]\ntargets = 'a'", ["analysis.targets = 'a'", "a list was expected"]),
        (f"{LEAST}[analysis]\ntargets = ['a', 1]", ["analysis.targets[1] = 1", "expected: str"]),
        (f"{LEAST}[analysis]\ntargets = []", ["analysis.targets is empty"]),
        (f"{LEAST}analysis = 3", ["analysis is 3", "a table was expected"]),
        ("store = 'a'", ["'output' is missing"]),
        ("output = 'a'", ["'store' is missing"]),
        (f"{LEAST}sets = {{name = 'a'}}", ["sets = ", "a list was expected"]),
        (f"{LEAST}sets = ['network']", ["sets[0] is 'network'", "a table was expected"]),
        (f"{LEAST}[[sets]]\nname = 'a'", ["'sets[0].features' is missing"]),
        (f"{LEAST}[[sets]]\nname = 'a'\nfeatures = 'mfcc'\nbets = 1", ["'sets[0].bets'", "best"]),
        (f"{LEAST}[[comparisons]]\nfirst = 'a'", ["'comparisons[0].second' is missing"]),
        (f"{LEAST}[analysis]\nbest = 0", ["analysis.best = 0", "1 or more"]),
        (f"{LEAST}[analysis]\nresamples = 0", ["analysis.resamples = 0", "1 or more"]),
        (f"{LEAST}[analysis]\npermutations = -1", ["analysis.permutations = -1", "0 or more"]),
        (f"{LEAST}[traces]\ncount = -2", ["traces.count = -2", "0 or more"]),
        (f"{LEAST}[analysis]\nseed = -1", ["analysis.seed = -1", "0 or more"]),
    ],
)
def test_an_error_names_file_key_and_what_is_accepted(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(AnalysisError) as caught:
        read_study(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_bytes_that_are_no_text_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_bytes(b'title = "\xff"')
    with pytest.raises(AnalysisError, match="is not a study file"):
        read_study(tmp_path / "study.toml")
    with pytest.raises(FileNotFoundError):
        read_study(tmp_path / "nowhere.toml")


def test_plain_values_make_the_same_study_again(tmp_path: Path) -> None:
    text = f"{LEAST}[[sets]]\nname = 'a'\nfeatures = 'mfcc'\nbest = 3\n[analysis]\nseed = 4"
    found = read_study(write(tmp_path, text))
    assert found.sets == (SetPlan("a", "mfcc", best=3),)
    assert from_dict(found.to_dict()) == found


def test_what_is_named_twice_counts_once(tmp_path: Path) -> None:
    text = f"{LEAST}[analysis]\ntargets = ['b', 'a', 'b']\n[traces]\nids = ['u', 'u']"
    found = read_study(write(tmp_path, text))
    assert found.analysis.targets == ("b", "a")
    assert found.traces.ids == ("u",)


# --- the template -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ravdess.toml", 'a "b" \\c.toml', "sühne.toml"])
def test_the_template_says_every_default(tmp_path: Path, name: str) -> None:
    write_template(tmp_path / name, manifest="lists/manifest.csv")
    found = read_study(tmp_path / name)
    stem = Path(name).stem
    assert found == Study(
        store=str(tmp_path / f"{stem}.store"),
        output=str(tmp_path / f"{stem}-report"),
        manifest=str(tmp_path / "lists" / "manifest.csv"),
        title=stem,
    )


def test_the_template_names_every_choice(tmp_path: Path) -> None:
    write_template(tmp_path / "a.toml", manifest="m.csv")
    text = (tmp_path / "a.toml").read_text(encoding="utf-8")
    said = tomllib.loads(text)
    for section, kind in (
        ("ingest", IngestPlan),
        ("analysis", AnalysisPlan),
        ("traces", TracePlan),
    ):
        assert set(said[section]) == {field.name for field in dataclasses.fields(kind)}
    # What is commented out is valid too, and names every field.
    start = text.index("# [[sets]]")
    shown = re.sub("(?m)^# ?", "", text[start:])
    own = tomllib.loads(shown)
    assert set(own["sets"][0]) == {field.name for field in dataclasses.fields(SetPlan)}
    assert set(own["comparisons"][0]) == {field.name for field in dataclasses.fields(Pair)}
    study = from_dict({"store": "a", "output": "b", **own})
    check_own(study.sets)
    names = {one.feature_set.name for one in sets_of(study.sets)}
    assert {study.comparisons[0].first, study.comparisons[0].second} <= names


# --- sets and comparisons -----------------------------------------------------------------------


def sets_of(own: tuple[SetPlan, ...] = (), plan: AnalysisPlan = AnalysisPlan()) -> list:  # noqa: B008
    return listed_sets(plan, main=MAIN, controls=[], own=own)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (SetPlan("a", "network..mean"), "is no term"),
        (SetPlan("a", "network[x]"), "is no range of layers"),
        (SetPlan("a", "network", model="forest"), "model = 'forest'; accepted: ols, ridge"),
        (SetPlan("a", "network", scale="log"), "scale = 'log'; accepted: none, standard"),
        (SetPlan("a", "network", select="t"), "select = 't'; accepted: none, f_regression"),
        (SetPlan("a", "network", best=-1), "best = -1"),
        (SetPlan("a", "network", leaky=True), "needs a selection"),
    ],
)
def test_a_wrong_set_is_refused_before_anything_is_ingested(plan: SetPlan, words: str) -> None:
    with pytest.raises(AnalysisError, match=re.escape(words)):
        run_study(Study("nowhere.store", "out", "nowhere.csv", sets=(plan,)))
    assert not Path("nowhere.store").exists()


@pytest.mark.parametrize(("best", "size"), [(100, 88), (88, 88), (1, 1)])
def test_names_of_sets_are_told_apart(best: int, size: int) -> None:
    plan = AnalysisPlan(best=best, same_size=size)
    found = sets_of(plan=plan)
    names = [one.feature_set.name for one in found]
    assert len(set(names)) == len(names)
    equal = next(one for one in found if one.feature_set.name == f"{size} best of all units")
    assert "controls" in equal.tables
    assert ("1" in equal.tables) == (best == size)


def test_a_comparison_with_nothing_names_what_there_is() -> None:
    names = [RIDGE, "train mean"]
    with pytest.raises(AnalysisError, match="'oak' to compare; there are: all units, ridge; train"):
        listed_pairs(AnalysisPlan(), names, [Pair(RIDGE, "oak")], controls=False)
    with pytest.raises(AnalysisError, match="'mean of the random networks' to compare"):
        listed_pairs(AnalysisPlan(), names, [Pair(RIDGE, MEAN_OF_CONTROLS)], controls=False)
    with pytest.raises(AnalysisError, match="only be the second"):
        listed_pairs(AnalysisPlan(), names, [Pair(MEAN_OF_CONTROLS, RIDGE)], controls=True)
    own = [Pair("train mean", RIDGE), Pair(RIDGE, "train mean")]
    found = listed_pairs(AnalysisPlan(), names, own, controls=False)
    assert found == [Pair(RIDGE, "train mean"), Pair("train mean", RIDGE)]  # each once


# --- views --------------------------------------------------------------------------------------

_NAMES = st.sampled_from(["network", "gcu", "gcu-1a2b", "mfcc", "networks", "wav2vec2-0"])
_PARTS = st.sampled_from(["", ".gate", ".std", ".gate.max", ".network"])
_LAYERS = st.sampled_from(["", "[0:3]", "[-1]", "[:2]", " [4]"])
_TERMS = st.builds("{}{}{}".format, _NAMES, _PARTS, _LAYERS)
_SAID = st.sampled_from([*NAMED, "egemaps", "mfcc"]) | _TERMS.filter(
    lambda text: not (text.startswith("mfcc") and "[" in text)
)


@given(st.lists(_SAID, min_size=1, max_size=4), st.sampled_from([" + ", "+", " +"]))
def test_network_means_the_view_and_nothing_else_changes(terms: list[str], plus: str) -> None:
    expression = plus.join(terms)
    try:
        before = parse(expression)
    except AnalysisError:  # the same term twice
        return
    wanted = [
        dataclasses.replace(term, block=dataclasses.replace(term.block, view=MAIN.name))
        if term.block.view == "network"
        else term
        for term in before
    ]
    if len(set(map(str, wanted))) == len(wanted):
        assert list(parse(in_view(expression, MAIN.name))) == wanted


def test_names_of_views_are_told_by_kind() -> None:
    facts = {MAIN.name: MAIN, "mfcc-0": ViewFacts("mfcc-0", "mfcc")}
    assert views_of(facts, ["gcu.mean[0] + mfcc", None, "gcu-1a2b.std"]) == ["gcu-1a2b", "mfcc-0"]


def named(*views: ViewFacts) -> dict[str, ViewFacts]:
    return {one.name: one for one in views}


def random(seed: int, name: str, **changes: object) -> ViewFacts:
    plain = {"weights": f"r{seed}", "weights_source": f"random:{seed}"}
    return dataclasses.replace(MAIN, name=name, frames=False, **{**plain, **changes})  # type: ignore[arg-type]


def test_the_view_that_a_study_is_about() -> None:
    mfcc = ViewFacts("mfcc-0", "mfcc", captures=("mfcc",))
    one, two = random(0, "gcu-0"), random(1, "gcu-1")
    for asked in ("network", "gcu", MAIN.name):
        assert main_view(named(MAIN, one, two, mfcc), asked) == MAIN
    assert main_view(named(one, mfcc), "network") == one  # the only one, trained or not
    assert main_view(named(MAIN, one), "gcu-0") == one
    with pytest.raises(AnalysisError, match=r"several views .*gcu-0 \(weights random:0\), gcu-1"):
        main_view(named(one, two), "network")
    other = dataclasses.replace(MAIN, name="gcu-9")
    with pytest.raises(AnalysisError, match="several views"):
        main_view(named(MAIN, other), "gcu")
    for asked in ("mfcc", "mfcc-0", "wav2vec2", "gcu-7"):
        with pytest.raises(AnalysisError, match=f"no view '{asked}' of a network; it has: gcu-1a"):
            main_view(named(MAIN, mfcc), asked)
    with pytest.raises(AnalysisError, match="it has: none"):
        main_view({}, "network")


def test_the_mfcc_that_a_network_hears_is_its_control() -> None:
    main = dataclasses.replace(MAIN, front_end="vctk")
    own, other, double = (
        ViewFacts(f"mfcc-{n}", "mfcc", front_end=front_end)
        for n, front_end in enumerate(("vctk", "librosa", "vctk"))
    )
    assert mfcc_view(named(main, other), main) == "mfcc"  # the only one
    assert mfcc_view(named(main, other, own), main) == "mfcc-0"
    assert mfcc_view(named(main, own, double), main) == "mfcc"  # left to the store, which asks
    found = listed_sets(AnalysisPlan(), main=main, controls=[], mfcc="mfcc-0")
    asked = {one.feature_set.features for one in found if "MFCC" in one.feature_set.name}
    assert asked == {"mfcc-0"}


def test_controls_are_untrained_networks_of_the_same_make() -> None:
    others = [
        random(10, "gcu-a"),
        random(2, "gcu-b"),
        random(3, "gcu-c", front_end="vctk"),
        random(4, "gcu-d", layer_names=("a",)),
        random(5, "wav2vec2-e", kind="wav2vec2"),
        random(6, "gcu-f", captures=("skip",)),
        random(7, "gcu-g", captures=("gate", "skip", "residual")),
        dataclasses.replace(MAIN, name="gcu-trained", weights="t"),
    ]
    found = control_views(named(MAIN, *others), MAIN)
    assert [one.name for one in found] == ["gcu-b", "gcu-g", "gcu-a"]  # by seed


def test_a_network_is_its_own_control_in_no_arithmetic() -> None:
    main = random(0, "gcu-0", precision="float32")
    fast = random(0, "gcu-1", precision="winograd")
    one, again = (random(1, f"gcu-{n}", precision=p) for n, p in ((2, "winograd"), (3, "float32")))
    assert control_views(named(main, fast, one, again), main) == [again]
    assert control_views(named(main, fast, one), main) == [one]


def test_controls_are_read_at_the_capture_of_the_network() -> None:
    main = dataclasses.replace(MAIN, captures=("skip",))
    control = random(3, "gcu-3")  # whose first capture is another one
    found = listed_sets(AnalysisPlan(), main=main, controls=[control])
    asked = {one.feature_set.name: one.feature_set.features for one in found}
    assert asked[RIDGE] == "gcu-1a2b.skip.mean"
    assert asked[f"{RIDGE} (random:3)"] == "gcu-3.skip.mean"


def test_two_controls_of_one_source_have_two_names() -> None:
    same = [random(1, "tiny-a", weights_source="random:x"), random(2, "tiny-b", weights_source="random:x")]  # fmt: skip  # noqa: E501
    found = listed_sets(AnalysisPlan(), main=MAIN, controls=same)
    names = [one.feature_set.name for one in found if "random:x" in one.feature_set.name]
    assert names == ["all units, ridge (random:x, tiny-a)", "all units, ridge (random:x, tiny-b)"]
