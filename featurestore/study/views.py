"""Which view of a store a study is about, and which are its controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from featurestore.analysis.features import Store
from featurestore.analysis.sets import NAMED, parse
from featurestore.errors import AnalysisError
from featurestore.types import NETWORK, VIEWS

_RANDOM = "random:"


@dataclass(frozen=True)
class ViewFacts:
    """What a report says about a view.

    Attributes:
        name: of the view.
        kind: mfcc, egemaps, or that of a network.
        weights: fingerprint, "" without any.
        weights_source: where they came from.
        captures: of the network.
        layer_names: from input to output.
        frames: whether it has every frame.
        front_end: how the audio is heard.
        precision: arithmetic of the network's matrix products.
    """

    name: str
    kind: str
    weights: str = ""
    weights_source: str = ""
    captures: tuple[str, ...] = ()
    layer_names: tuple[str, ...] = ()
    frames: bool = False
    front_end: str = ""
    precision: str = ""

    @property
    def is_network(self) -> bool:
        """Whether it holds activations."""
        return self.kind not in VIEWS

    @property
    def untrained(self) -> bool:
        """Whether the weights are random."""
        return self.weights_source.startswith(_RANDOM)


class StudiedStore(Store, Protocol):
    """What a study reads: a store, or the pooled data of one in a bundle."""

    @property
    def facts(self) -> dict[str, ViewFacts]:
        """What is known of each view."""
        ...


class Studied:
    """A store, with the facts about its views."""

    def __init__(self, store: Any):
        self.store = store
        self.facts = {name: _facts(store, name) for name in store.views}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def _facts(store: Any, name: str) -> ViewFacts:
    config = store.config(name)
    return ViewFacts(
        name=name,
        kind=config.kind,
        weights=config.weights,
        weights_source=config.weights_source,
        captures=tuple(config.captures),
        layer_names=tuple(config.layer_names),
        frames=config.frames,
        front_end=config.front_end,
        precision=config.precision if config.weights else "",
    )


def main_view(facts: dict[str, ViewFacts], asked: str) -> ViewFacts:
    """The network's view that a study is about.

    Args:
        facts: of all views.
        asked: a name or kind; "network" for the only one, or the only one that is trained.

    Raises:
        AnalysisError: none, or several; names them.
    """
    if asked in facts and facts[asked].is_network:
        return facts[asked]
    found = [one for one in facts.values() if one.is_network and asked in (one.kind, NETWORK)]
    trained = [one for one in found if not one.untrained]
    if len(found) == 1 or len(trained) == 1:
        return (found if len(found) == 1 else trained)[0]
    if not found:
        raise AnalysisError(
            f"The store has no view {asked!r} of a network; it has: {', '.join(facts) or 'none'}."
        )
    names = ", ".join(f"{one.name} (weights {one.weights_source})" for one in found)
    raise AnalysisError(f"The store has several views of networks; name one (--view): {names}.")


def control_views(facts: dict[str, ViewFacts], main: ViewFacts) -> list[ViewFacts]:
    """Views of untrained networks of the same kind, captures and front end, by their seed.

    One of each network: where several arithmetics computed it, that of the main view counts.
    """
    found = [
        one
        for one in facts.values()
        if one.untrained
        and one.weights != main.weights
        and (one.kind, one.front_end, one.layer_names)
        == (main.kind, main.front_end, main.layer_names)
        and set(main.captures) <= set(one.captures)
    ]

    def order(one: ViewFacts) -> tuple[int, str, bool, str]:
        source = one.weights_source
        return len(source), source, one.precision != main.precision, one.name

    first: dict[str, ViewFacts] = {}
    for one in sorted(found, key=order):
        first.setdefault(one.weights, one)
    return list(first.values())


def mfcc_view(facts: Mapping[str, ViewFacts], main: ViewFacts) -> str:
    """The view of the MFCC that a network hears, where a store has those of several front ends."""
    views = [one for one in facts.values() if one.kind == "mfcc"]
    own = [one.name for one in views if one.front_end == main.front_end]
    return own[0] if len(views) > 1 and len(own) == 1 else "mfcc"


def views_of(facts: Mapping[str, ViewFacts], expressions: Iterable[str | None]) -> list[str]:
    """Names of the views that expressions read, each once.

    Args:
        facts: of all views.
        expressions: of features; None among them reads nothing.

    Raises:
        AnalysisError: one that is no expression.
    """
    asked = [term.block.view for one in expressions if one is not None for term in parse(one)]
    return list(dict.fromkeys(view_named(facts, one) for one in asked))


def covariate_views(store: StudiedStore, names: Sequence[str]) -> list[str]:
    """Names of the views that covariates are read from.

    Args:
        store: whose views these are.
        names: as in `featurestore.analysis.covariates`.
    """
    heard = any(one in ("loudness", "f0") or one.startswith("egemaps:") for one in names)
    kinds = [kind for kind in ("egemaps", "mfcc") if kind in store.kinds]
    return [view_named(store.facts, kind) for kind in kinds[:1] if heard]


def view_named(facts: Mapping[str, ViewFacts], asked: str) -> str:
    """A view's name by its name or kind; what is unknown or ambiguous is left to the store."""
    found = [one.name for one in facts.values() if asked in (one.name, one.kind)]
    return found[0] if len(found) == 1 else asked


def in_view(expression: str, view: str) -> str:
    """An expression about `network`, about one view of it."""
    terms = []
    for text in expression.split("+"):
        text = NAMED.get(text.strip(), text.strip())
        head, dot, rest = text.partition(".")
        name, bracket, layers = head.partition("[")
        if name.strip() == NETWORK:
            text = view + bracket + layers + dot + rest
        terms.append(text)
    return " + ".join(terms)


def caveats_of(main: ViewFacts, table: Any, targets: Sequence[str]) -> list[str]:
    """What has to be said under every result."""
    from featurestore.analysis.caveats import label_caveats, weights_caveats

    return [
        *weights_caveats(main.weights_source, untrained=main.untrained),
        *label_caveats(table, targets=targets),
    ]
