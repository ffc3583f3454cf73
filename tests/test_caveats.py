from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from featurestore.analysis.caveats import PROXIES, label_caveats


def table_of(**columns: Any) -> xr.Dataset:
    return xr.Dataset(coords={name: ("utterance", np.array(v)) for name, v in columns.items()})


def test_derived_labels_are_called_proxies() -> None:
    emotion = np.array(["sad", "happy", "sad", "happy", "sad", "happy"], object)
    arousal = np.where(emotion == "sad", 2.0, 4.0)
    intensity = np.array(["normal", "normal", "strong", "strong"] + ["normal"] * 2, object)
    derived = table_of(emotion=emotion, arousal=arousal)
    assert label_caveats(derived, targets=["arousal"]) == [PROXIES]
    rated = arousal + np.arange(6) / 100
    assert label_caveats(table_of(emotion=emotion, arousal=rated), targets=["arousal"]) == []
    said = table_of(arousal=rated, ratings=np.array(["proxy"] * 6, object))
    assert label_caveats(said, targets=["arousal"]) == [PROXIES]
    # Not shown by cells of one utterance each, by a constant, or by a corpus without emotions.
    single = table_of(emotion=emotion, intensity=intensity, arousal=rated)
    assert label_caveats(single, targets=["arousal"]) == []
    constant = table_of(emotion=emotion, arousal=np.full(6, 3.0))
    assert label_caveats(constant, targets=["arousal"]) == []
    assert label_caveats(table_of(arousal=arousal), targets=["arousal"]) == []
