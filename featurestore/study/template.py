"""A study file with every choice at its default."""

from __future__ import annotations

import os
from pathlib import Path

from featurestore.files import replacing
from featurestore.study.config import AnalysisPlan, IngestPlan, TracePlan

_TEXT = """\
# A study of featurestore: 'featurestore study run FILE' does all of it, from ingest to report, and
# does again only what has changed. Paths are relative to this file.

title = "{title}"
manifest = "{manifest}"    # from 'featurestore corpus'; leave it out if the store is complete
store = "{stem}.store"
output = "{stem}-report"

[ingest]
weights = {weights}
controls = {controls}    # networks to compare with; statistics only
views = {views}
captures = {captures}                # of the network: gate, skip, residual; its first one if empty
frames = {frames}                # traces need them
precision = {precision}         # or "fast"

[analysis]
targets = {targets}
view = {view}             # or a view's name, where the store has several networks
capture = {capture}                 # of the network; its first one if empty
folds = {folds}              # or "session", another column, or "speaker:5"
covariates = {covariates}    # taken out of the partial map
confounds = {confounds}               # such as "sex", "f0", "age"; what the corpus has if empty
best = {best}                   # units that are selected, as in the paper
same_size = {same_size}               # features in comparisons of equal size
permutations = {permutations}
resamples = {resamples}
emotion = {emotion}          # category that raters agreed on, for table 2
disagreement = {disagreement}         # its value without a majority
seed = {seed}

[traces]
ids = {ids}                     # utterances; some of high, middling and low labels if empty
count = {count}

# Feature sets of your own, and comparisons of any sets by name:
#
# [[sets]]
# name = "last layer, support vectors"
# features = "network.mean[-1]"   # view.capture.statistic[layers], and + between them
# model = "svr"                   # or ols, ridge, pls
# scale = "robust"                # or standard, none
# best = 50                       # selected in each fold; all if left out
# select = "f_regression"         # or f_classif, abs_r, pca
# leaky = false                   # true shows what selecting on held-out speakers would claim
#
# [[comparisons]]
# first = "last layer, support vectors"
# second = "all units, ridge"
"""


def write_template(path: str | os.PathLike[str], *, manifest: str) -> None:
    """Write a study file that says every default.

    Args:
        path: TOML file.
        manifest: of the corpus, relative to the file's folder.
    """
    stem = Path(path).stem
    defaults = {**vars(IngestPlan()), **vars(AnalysisPlan()), **vars(TracePlan())}
    said = {key: _toml(value) for key, value in defaults.items()}
    quoted = {key: value.replace("\\", "\\\\").replace('"', '\\"') for key, value in
              {"title": stem, "stem": stem, "manifest": manifest}.items()}  # fmt: skip
    with replacing(path) as temporary:
        temporary.write_text(_TEXT.format(**{**said, **quoted}), encoding="utf-8")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
