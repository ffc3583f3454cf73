"""A linear model applied to every frame, on stores as an ingest makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from synthetic import write_corpus

import featurestore as fs
from featurestore.analysis.features import AnalysisWarning
from featurestore.analysis.folds import one_out
from featurestore.analysis.models import FeatureSet
from featurestore.analysis.regression import leave_out
from featurestore.analysis.ridge import fit_ridge
from featurestore.analysis.sets import join
from featurestore.analysis.trace import MODEL, Trace, linear, picture, trace
from featurestore.audio import load_audio
from featurestore.encoder import Encoder
from featurestore.errors import AnalysisError, StoreError

# Loading librosa's features imports what Python 3.13 drops.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*slated for removal in Python 3.13:DeprecationWarning"
)

COUNT, SEGMENT, SILENT, ABSENT = 20, "u004", "u007", "u011"
# What the stored mean, made in float32 before frames are rounded, and the mean of stored frames
# differ by, against the range of the predictions. Seen: 1.3e-8 and 1.7e-5.
ROUNDING = {"float32": 1e-6, "float16": 1e-3}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return fs.load_encoder("random:0")  # whose compiled programs all stores share


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Twenty utterances of four speakers; one has no arousal, one is a segment, one has no file."""
    durations = 0.4 + 0.15 * np.arange(COUNT)
    table = write_corpus(tmp_path_factory.mktemp("corpus"), durations=durations, speakers=4)
    table["text"] = [f"words {i}" if i % 2 else "" for i in range(COUNT)]
    table["start"], table["end"] = 0.0, np.nan
    at = table.set_index("id").index.get_loc
    table.loc[at(SEGMENT), ["start", "end"]] = [0.25, 0.85]
    table.loc[at(SILENT), "arousal"] = np.nan
    return table


@pytest.fixture(scope="module", params=["float32", "float16"])
def opened(
    request: pytest.FixtureRequest,
    manifest: pd.DataFrame,
    encoder: Encoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[fs.Store, str]]:
    path = tmp_path_factory.mktemp("stores") / "store"
    fs.ingest(
        manifest,
        path,
        encoder=encoder,
        views=("gcu", "mfcc"),
        captures=("gate", "residual"),
        dtype=request.param,
    )
    lost = Path(manifest.set_index("id").loc[ABSENT, "path"])
    aside = lost.with_suffix(".aside")
    lost.rename(aside)  # its statistics and frames are stored, its audio is gone
    yield fs.open_store(path), request.param
    aside.rename(lost)


MODELS = {
    "ridge": MODEL,
    "ridge, another capture": FeatureSet("residual", "network.residual.mean", model="ridge"),
    "ols, 5 best": FeatureSet("5 best", "network.gate.mean", 5),
    "svr": FeatureSet("svr, 20 best", "network.mean", 20, model="svr"),
    "pls": FeatureSet("pls", "network.mean", model="pls"),
    "pca": FeatureSet("5 components", "network.mean", 5, "pca", "standard"),
    "first layers": FeatureSet("first", "network.mean[:3]", model="ridge"),
    "last layers": FeatureSet("last", "network.mean[-3:]", 5),
    "MFCC": FeatureSet("MFCC", "mfcc.mean", model="ridge"),
    "both": FeatureSet("both", "network.mean[4] + mfcc.mean", model="ridge"),
}


@pytest.mark.parametrize("case", MODELS)
def test_the_mean_of_a_trace_is_the_held_out_prediction(
    opened: tuple[fs.Store, str], case: str
) -> None:
    store, dtype = opened
    model = MODELS[case]
    joined = join(store, [model.features])
    y = joined.table["valence"].to_numpy()
    speakers = joined.table["speaker"].to_numpy().astype(str)
    held = np.full(len(y), np.nan)
    for fold in leave_out(
        model,
        X=joined.matrix(model.features),
        Y=y[:, None],
        speakers=speakers,
        splits=one_out(speakers),
    ):
        held[fold.split.test] = fold.predicted[:, 0]
    scale = np.ptp(held)
    for id in ("u000", "u013"):
        (found,) = trace(store, [id], targets=("valence",), model=model, audio=False)
        row = joined.ids.tolist().index(id)
        assert (found.id, found.speaker) == (id, speakers[row])
        assert (found.target, found.features) == ("valence", model.name)
        frames = store.utterance("mfcc", "mfcc", id)
        values = found.values  # noqa: PD011
        assert values.shape == (frames.sizes["frame"],)
        np.testing.assert_array_equal(found.time_s, frames["time_s"])
        assert values.mean() == pytest.approx(found.predicted, rel=1e-10)
        assert np.ptp(values) > 0
        assert found.pooled == pytest.approx(held[row], rel=1e-10)
        assert found.predicted == pytest.approx(found.pooled, abs=ROUNDING[dtype] * scale)
        assert found.truth == y[row]
        others = y[speakers != speakers[row]]
        assert (found.low, found.high) == (others.min(), others.max())


def test_one_trace_per_utterance_and_target_with_what_is_known_of_it(
    opened: tuple[fs.Store, str], manifest: pd.DataFrame
) -> None:
    store, _ = opened
    ids = ["u001", SILENT, ABSENT]
    found = trace(store, ids, model=MODELS["MFCC"])
    assert [(one.id, one.target) for one in found] == [
        (id, target) for id in ids for target in ("valence", "arousal")
    ]
    rows = manifest.set_index("id")
    for one in found:
        np.testing.assert_equal(one.truth, rows.loc[one.id, one.target])
        assert one.text == rows.loc[one.id, "text"] != ""
        assert (one.waveform is None) == (one.id == ABSENT)
        assert (one.log_mel is None) == (one.id == ABSENT)
        assert np.isnan(one.duration_s) == (one.id == ABSENT)
    assert np.isnan(found[3].truth)  # of the utterance without arousal, which has a trace
    assert np.isfinite(found[3].values).all()
    assert trace(store, ["u002"], model=MODELS["MFCC"])[0].text == ""
    (silent,) = trace(store, ["u001"], targets="valence", model=MODELS["MFCC"], audio=False)
    assert silent.waveform is None


def test_an_unlabelled_utterance_does_not_train(opened: tuple[fs.Store, str]) -> None:
    """Its speaker's others are predicted from the labelled ones of the other speakers alone."""
    store, _ = opened
    (found,) = trace(store, ["u000"], targets="arousal", model=MODELS["MFCC"], audio=False)
    joined = join(store, ["mfcc.mean"])
    y, speakers = joined.table["arousal"].to_numpy(), joined.table["speaker"].to_numpy()
    train = np.isfinite(y) & (speakers != found.speaker)
    X = joined.matrix("mfcc.mean").astype(np.float64)
    model = fit_ridge(X[train], y=y[train], speakers=speakers[train].astype(str))
    assert found.pooled == pytest.approx(model.predict(X[:1])[0], rel=1e-9)


def test_a_recording_under_two_names_trains_no_trace_of_itself(
    manifest: pd.DataFrame, encoder: Encoder, tmp_path: Path
) -> None:
    u000, u001 = (manifest.set_index("id").loc[i] for i in ("u000", "u001"))
    assert u000["speaker"] != u001["speaker"]
    again = pd.concat(
        [manifest, pd.DataFrame([{**u000, "id": "again", "speaker": u001["speaker"]}])],
        ignore_index=True,
    )
    models = []
    for name, table in (("once", manifest), ("twice", again)):
        fs.ingest(table, tmp_path / name, encoder=encoder, views=("gcu",), captures=("gate",))
        store = fs.open_store(tmp_path / name)
        if name == "twice":
            with pytest.warns(AnalysisWarning, match=r"1 utterances of other .*'again'"):
                models += trace(store, ["u000"], targets=("valence",), audio=False)
        else:
            models += trace(store, ["u000"], targets=("valence",), audio=False)
    np.testing.assert_array_equal(models[0].values, models[1].values)


def test_the_picture_is_of_the_segment_alone(
    opened: tuple[fs.Store, str], manifest: pd.DataFrame
) -> None:
    store, _ = opened
    rows = manifest.set_index("id")
    for id, start, end in ((SEGMENT, 0.25, 0.85), ("u000", 0.0, None)):
        (found,) = trace(store, [id], targets="valence", model=MODELS["MFCC"])
        samples, rate = soundfile.read(rows.loc[id, "path"], dtype="float32")
        samples = samples[round(start * rate) : round(end * rate) if end else None]
        assert found.duration_s == pytest.approx(len(samples) / rate)
        assert found.waveform is not None
        assert found.waveform.shape == (800, 2)
        assert found.waveform[:, 1].max() == samples.max()
        assert found.waveform[:, 0].min() == samples.min()
        assert found.waveform[0, 0] == samples[: len(samples) // 800].min()
        assert found.log_mel is not None
        assert found.log_mel.shape == (64, 1 + len(samples) // 512)
        assert (found.log_mel.max(), found.log_mel.min() >= -80) == (0.0, True)
        assert found.time_s[-1] < found.duration_s


def test_the_spectrogram_has_the_bands_of_librosa_and_silence_is_no_error(
    manifest: pd.DataFrame,
) -> None:
    import librosa

    samples = load_audio(manifest["path"][3])
    mel = librosa.feature.melspectrogram(
        y=samples, sr=16_000, n_fft=1024, hop_length=512, n_mels=64
    )
    expected = librosa.power_to_db(mel, ref=np.max, amin=1e-10, top_db=80)
    np.testing.assert_allclose(picture(samples)["log_mel"], expected, atol=1e-3)
    silence = picture(np.zeros(2000, np.float32))
    assert not silence["waveform"].any()
    assert np.isfinite(silence["log_mel"]).all()
    short = picture(samples[:300].repeat(4)[:1100])
    assert short["waveform"].shape == (800, 2)
    assert short["duration_s"] == 1100 / 16_000
    loud = picture(3 * samples / np.abs(samples).max())
    assert np.abs(loud["waveform"]).max() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (FeatureSet("clipped", "network.mean", scale="robust"), "clips them"),
        (FeatureSet("loudest", "network.max", model="ridge"), "'network' is a max"),
        (FeatureSet("in part", "network.mean + mfcc", model="ridge"), "'mfcc' is a std"),
        (FeatureSet("functionals", "egemaps"), "'egemaps' is no statistic over frames"),
        (FeatureSet("train mean", None), "it has no features"),
    ],
)
def test_what_is_not_linear_in_frames_is_refused(
    opened: tuple[fs.Store, str], model: FeatureSet, words: str
) -> None:
    with pytest.raises(AnalysisError, match=words):
        trace(opened[0], ["u000"], model=model)


def test_unknown_names_are_refused(opened: tuple[fs.Store, str]) -> None:
    store, _ = opened
    with pytest.raises(AnalysisError, match=r"No utterance 'u999' .*u000, u001"):
        trace(store, ["u999"], model=MODELS["MFCC"])
    with pytest.raises(AnalysisError, match=r"No label 'anger'.*valence"):
        trace(store, ["u000"], targets="anger", model=MODELS["MFCC"])
    with pytest.raises(AnalysisError, match="no capture 'skip'"):
        trace(store, ["u000"], model=FeatureSet("skip", "network.skip.mean"))


def test_one_speaker_has_no_other_to_learn_from(tmp_path: Path) -> None:
    table = write_corpus(tmp_path, durations=[0.4, 0.5, 0.6], speakers=1)
    fs.ingest(table, tmp_path / "store", views=("mfcc",))
    with pytest.raises(AnalysisError, match="No other speaker than 's0'"):
        trace(fs.open_store(tmp_path / "store"), ["u000"], model=MODELS["MFCC"])


def test_a_store_without_frames_has_no_trace(tmp_path: Path, encoder: Encoder) -> None:
    table = write_corpus(tmp_path, durations=[0.4, 0.5, 0.6, 0.7], speakers=2)
    fs.ingest(table, tmp_path / "store", encoder=encoder, views=("gcu",), frames=False)
    with pytest.raises(StoreError, match="without frames"):
        trace(fs.open_store(tmp_path / "store"), ["u000"])


def test_the_default_model_is_a_ridge_on_all_units_of_the_only_network(
    opened: tuple[fs.Store, str],
) -> None:
    (found,) = trace(opened[0], ["u005"], targets="valence", audio=False)
    assert isinstance(found, Trace)
    assert found.features == MODEL.name
    assert MODEL.features == "network.mean"
    assert MODEL.model == "ridge"


STEPS = {
    "ols": [LinearRegression()],
    "ridge": [StandardScaler(), Ridge(3.0)],
    "best": [SelectKBest(f_regression, k=2), StandardScaler(), LinearRegression()],
    "pca": [StandardScaler(), PCA(2), LinearRegression()],
    "pls": [StandardScaler(), PLSRegression(n_components=2, scale=False)],
    "svr": [StandardScaler(), SVR(kernel="linear", C=0.1)],
}


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(STEPS)),
    width=st.integers(3, 12),
    level=st.floats(-1e3, 1e3),
    seed=st.integers(0, 2**20),
)
def test_a_slope_and_an_intercept_say_what_any_linear_pipeline_does(
    name: str, width: int, level: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    X = rng.normal(level / 100, 2, (30, width))
    y = level + X[:, 0] - X[:, 1] + rng.normal(size=30)
    model = make_pipeline(*STEPS[name]).fit(X, y)
    far = rng.normal(0, 50, (40, width))
    expected = np.asarray(model.predict(far)).reshape(-1)
    np.testing.assert_allclose(
        linear(model, width)(far), expected, rtol=1e-9, atol=1e-9 * (1 + abs(level))
    )


def test_more_features_than_are_asked_at_a_time() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 1100)), rng.normal(size=40)
    model = make_pipeline(StandardScaler(), Ridge(5.0)).fit(X, y)
    line = linear(model, 1100)
    np.testing.assert_allclose(line.slope, model[-1].coef_ / model[0].scale_, atol=1e-12)
    np.testing.assert_allclose(line(X), model.predict(X), atol=1e-11)
