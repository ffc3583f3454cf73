"""Look into a store from Python: which units follow arousal, and one utterance over time.

python examples/explore_store.py STORE
"""

from __future__ import annotations

import sys

import featurestore as fs


def main(path: str) -> None:
    """Print the ten units that follow arousal best and the first seconds of the best one."""
    store = fs.open_store(path)
    print(store)

    found = fs.correlate(store, target="arousal")
    best = found["r"].stack(cell=("layer", "unit")).to_series().sort_values(key=abs)[::-1]
    print("\nUnits that follow arousal, over all utterances:")
    for (layer, unit), r in best.head(10).items():
        print(f"  layer {layer:2d}  unit {unit:3d}  r = {r:+.3f}")

    layer, unit = best.index[0]
    utterances = store.utterances("gcu")
    loudest = utterances.sort_values("arousal")["id"].iloc[-1]
    frames = store.utterance("gcu", "gate", loudest).sel(layer=layer)[:, unit]
    print(f"\nThe best one over the utterance with the highest arousal, {loudest}:")
    for time, value in zip(frames["time_s"].values[:10], frames.values[:10], strict=True):
        print(f"  {time:5.3f} s  {float(value):+.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
