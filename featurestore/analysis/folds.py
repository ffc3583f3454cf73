"""Who is held out: one speaker or one session at a time, or groups of speakers.

A fold is refused rather than leaky: an unknown speaker could be on both sides, and so could a
speaker of two sessions, or a recording that is in the corpus twice under two names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from featurestore.analysis.features import known_speakers, text_values
from featurestore.errors import AnalysisError

_ACCEPTED = "accepted: speaker, speaker:K (K groups of speakers), session, or a text column's name"


@dataclass(frozen=True, eq=False)
class Split:
    """One fold.

    Attributes:
        name: the held-out speaker or session, or "1", "2", ... of a group of speakers.
        train: (training,) rows.
        test: (held_out,) rows.
    """

    name: str
    train: Int64[np.ndarray, " training"]
    test: Int64[np.ndarray, " held_out"]


def make_folds(
    table: xr.Dataset, *, scheme: str = "speaker", of: NDArray[np.bool_] | None = None
) -> list[Split]:
    """Folds over the utterances of a table.

    Args:
        table: coordinates along utterance: id, speaker, and `audio_sha256` where it is known.
        scheme: "speaker" leaves one speaker out at a time, "session" one session, any other text
            column likewise; "speaker:5" deals speakers into 5 groups of about as many utterances.
        of: (utterance,) which utterances take part; all by default.

    Returns:
        Splits in ascending order of their names; rows count in `table`.

    Raises:
        AnalysisError: an unknown speaker or session, fewer than two folds, a speaker in two
            folds, or the same audio in two folds; names them.
    """
    count = table.sizes["utterance"]
    rows = np.arange(count) if of is None else np.flatnonzero(of)
    speakers = known_speakers(table, of=of)[rows]
    names, groups = _groups(table, scheme, rows, speakers)
    _refuse_shared(groups, speakers, names, "speaker", scheme)
    if "audio_sha256" in table.coords:
        hashes = text_values(table, "audio_sha256")[rows]
        _refuse_same_audio(groups, hashes, names, text_values(table, "id")[rows])
    return _splits(names, groups, rows)


def one_out(groups: Shaped[np.ndarray, " utterance"]) -> list[Split]:
    """Splits that leave out one group of utterances, such as a speaker, at a time."""
    names, codes = np.unique(groups, return_inverse=True)
    return _splits(names.tolist(), codes, np.arange(len(groups)))


def _splits(
    names: Sequence[str], codes: Int64[np.ndarray, " row"], rows: Int64[np.ndarray, " row"]
) -> list[Split]:
    return [
        Split(str(name), rows[codes != code], rows[codes == code])
        for code, name in enumerate(names)
    ]


def _groups(
    table: xr.Dataset, scheme: str, rows: NDArray[np.int64], speakers: NDArray[np.str_]
) -> tuple[Sequence[str], NDArray[np.int64]]:
    """Names of folds, and the fold of each of `rows`."""
    if scheme == "speaker":
        return _at_least_two(*np.unique(speakers, return_inverse=True), "speaker")
    dealt = re.fullmatch(r"speaker:(\d+)", scheme)
    if dealt:
        wanted, held = int(dealt[1]), len(np.unique(speakers))
        if not 2 <= wanted <= held:
            raise AnalysisError(
                f"Folds {scheme!r}: {wanted} groups of {held} speakers; give 2 to {held}."
            )
        codes = np.empty(len(rows), np.int64)
        for code, (_, test) in enumerate(GroupKFold(wanted).split(speakers, groups=speakers)):
            codes[test] = code
        return [str(code + 1) for code in range(wanted)], codes
    if scheme not in table.coords or table[scheme].dims != ("utterance",):
        raise AnalysisError(f"No column {scheme!r} to make folds of; {_ACCEPTED}.")
    values = text_values(table, scheme)[rows]
    if (values == "").any():
        first = text_values(table, "id")[rows][np.argmax(values == "")]
        raise AnalysisError(
            f"{int((values == '').sum())} utterances have no {scheme} (the first is {first!r}); "
            "fill that column of the manifest and ingest again."
        )
    return _at_least_two(*np.unique(values, return_inverse=True), scheme)


def _at_least_two(
    names: NDArray[np.str_], codes: NDArray[np.int64], what: str
) -> tuple[Sequence[str], NDArray[np.int64]]:
    if len(names) < 2:
        only = f" ({names[0]!r})" if len(names) else ""
        raise AnalysisError(
            f"Leaving one {what} out takes at least 2 {what}s with a label, here is "
            f"{len(names)}{only}. Check the manifest's '{what}' column."
        )
    return names.tolist(), codes.astype(np.int64)


def _refuse_shared(
    groups: Int64[np.ndarray, " row"],
    values: Shaped[np.ndarray, " row"],
    names: Sequence[str],
    what: str,
    scheme: str,
) -> None:
    first, found = _in_two(groups, values)
    if found is not None:
        raise AnalysisError(
            f"Folds {scheme!r}: {what} {first!r} is in {names[found[0]]!r} and "
            f"{names[found[1]]!r}, so a model would be tested on a {what} it has heard; use folds "
            "by speaker."
        )


def _refuse_same_audio(
    groups: Int64[np.ndarray, " row"],
    hashes: Shaped[np.ndarray, " row"],
    names: Sequence[str],
    ids: Shaped[np.ndarray, " row"],
) -> None:
    known = hashes != ""
    first, found = _in_two(groups[known], hashes[known])
    if found is not None:
        a, b = (str(ids[(hashes == first) & (groups == code)][0]) for code in found)
        raise AnalysisError(
            f"Utterances {a!r} and {b!r} are the same audio, in folds {names[found[0]]!r} and "
            f"{names[found[1]]!r}: a model would be tested on what it was fitted to. Remove one of "
            "them from the manifest, or correct its speaker, and ingest again."
        )


def _in_two(
    groups: Int64[np.ndarray, " row"], values: Shaped[np.ndarray, " row"]
) -> tuple[str, tuple[int, int] | None]:
    """The first value that is in two groups, and which two."""
    pairs = np.unique(np.stack([np.unique(values, return_inverse=True)[1], groups], axis=1), axis=0)
    twice = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
    if not len(twice):
        return "", None
    at = int(twice[0])
    value = np.unique(values)[pairs[at, 0]]
    return str(value), (int(pairs[at, 1]), int(pairs[at + 1, 1]))
