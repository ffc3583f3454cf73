"""Sums, and sums of products, of features and targets per group of rows, in float64.

With dx = x - c and dy = y - d about a common centre (c, d), over the rows of group g

    n,  sum(dx),  sum(dy),  sum(dx dx'),  sum(dx dy'),  sum(dy dy')

which is all that means, covariances, correlations and linear regressions of any set of groups need.
`reference` says exactly that; every other implementation has to match it.

About zero a feature of mean 1 and deviation 1e-6 keeps four digits of its variance; about the mean
of all rows it keeps those of the groups' means among themselves. The covariance of a group about
its own mean is sum(dx dx') / n - mean(dx) mean(dx)' (Chan, Golub and LeVeque 1983, "Algorithms for
computing the sample variance": shifted data), and sums about one centre just add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from featurestore.kernels.choice import choose

# Rows of a group that are multiplied together: as many as a group has on average, within bounds.
# Below, adding products up takes longer than making them; above, the last tile is mostly zeros.
_FEWEST, _MOST = 64, 512


class Centre(NamedTuple):
    """What is subtracted from every row.

    Attributes:
        x: (feature,).
        y: (target,).
    """

    x: ArrayLike
    y: ArrayLike


class CrossProducts(NamedTuple):
    """Of dx = x - centre.x and dy = y - centre.y over each group's rows; float64.

    Attributes:
        n: rows (group,), int64.
        x: sum of dx (group, feature).
        y: sum of dy (group, target).
        xx: sum of dx dx' (group, feature, feature).
        xy: sum of dx dy' (group, feature, target).
        yy: sum of dy dy' (group, target, target).
        centre: the same for all groups.
    """

    n: Array
    x: Array
    y: Array
    xx: Array
    xy: Array
    yy: Array
    centre: Centre


_Sums = tuple[Array, Array, Array, Array, Array, Array]  # the fields of `CrossProducts` but centre


def reference(
    x: Float[Array, "row feature"],
    y: Float[Array, "row target"],
    own: Float[Array, " row"],
    centre: Centre,
) -> _Sums:
    """The definition, for one group; call it where float64 is enabled.

    Args:
        x: features.
        y: targets.
        own: 1.0 where a row is of the group, 0.0 elsewhere, whatever that row holds.
        centre: what is subtracted.
    """
    dx, dy = _deviations(x, y, own > 0, centre)
    return own.sum().astype(jnp.int64), dx.sum(axis=0), dy.sum(axis=0), *_products(dx, dy)


def _deviations(x: Array, y: Array, own: Array, centre: Centre) -> tuple[Array, Array]:
    """From the centre; zero in rows that do not count."""
    dx, dy = x.astype(jnp.float64) - centre.x, y.astype(jnp.float64) - centre.y
    return jnp.where(own[:, None], dx, 0.0), jnp.where(own[:, None], dy, 0.0)


def _products(dx: Array, dy: Array) -> tuple[Array, Array, Array]:
    return _product(dx, dx), _product(dx, dy), _product(dy, dy)


def _product(a: Array, b: Array) -> Array:
    """The product of `a` transposed and `b`."""
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), precision=jax.lax.Precision.HIGHEST)


def _by_mask(x: Array, y: Array, groups: Array, centre: Centre, n_groups: int) -> _Sums:
    def of_group(group: Array) -> _Sums:
        return reference(x, y, (groups == group).astype(jnp.float64), centre)

    return jax.lax.map(of_group, jnp.arange(n_groups, dtype=groups.dtype))


def _in_tiles(x: Array, y: Array, groups: Array, centre: Centre, n_groups: int) -> _Sums:
    """Rows of one group at a time, some hundreds together; every row is multiplied once."""
    rows = len(groups)
    size = min(_MOST, max(_FEWEST, rows // n_groups))
    known = jnp.where((groups >= 0) & (groups < n_groups), groups, n_groups)
    order = jnp.argsort(known, stable=True)
    counts = jnp.bincount(known, length=n_groups + 1)[:n_groups]
    ends = jnp.cumsum(counts)
    last_tiles = jnp.cumsum(-(-counts // size))

    def add(tile: Array, sums: list[Array]) -> list[Array]:
        group = jnp.searchsorted(last_tiles, tile, side="right")
        behind = last_tiles[group] - tile  # this tile and those of its group that follow
        of_group = -(-counts[group] // size)
        places = ends[group] - counts[group] + (of_group - behind) * size + jnp.arange(size)
        taken = order[jnp.minimum(places, rows - 1)]
        dx, dy = _deviations(x[taken], y[taken], places < ends[group], centre)
        parts = (dx.sum(axis=0), dy.sum(axis=0), *_products(dx, dy))
        return [
            jax.lax.dynamic_update_index_in_dim(sum_, sum_[group] + part, group, 0)
            for sum_, part in zip(sums, parts, strict=True)
        ]

    features, targets = x.shape[1], y.shape[1]
    shapes = ((features,), (targets,), (features, features), (features, targets), (targets,) * 2)
    zeros = [jnp.zeros((n_groups, *shape), jnp.float64) for shape in shapes]
    x_sum, y_sum, xx, xy, yy = jax.lax.fori_loop(0, last_tiles[-1], add, zeros)
    return counts.astype(jnp.int64), x_sum, y_sum, xx, xy, yy


_IMPLEMENTATIONS: dict[str, Callable[..., _Sums]] = {"reference": _by_mask, "tiles": _in_tiles}


def _auto() -> tuple[str, str]:
    return "tiles", "every row is multiplied once, not once per group"


def cross_products(
    x: Float[ArrayLike, "row feature"],
    y: Float[ArrayLike, "row target"],
    groups: Int[ArrayLike, " row"],
    *,
    n_groups: int,
    centre: Centre | None = None,
    implementation: str = "auto",
) -> CrossProducts:
    """Sums of features, of targets and of their products, per group of rows.

    Traceable, and float64 need not be enabled for it; `jax.jit` it with `n_groups` static. Results
    are read by NumPy, or where float64 is enabled.

    Args:
        x: features, float32 or float64; one row at least.
        y: targets.
        groups: of each row, 0 to `n_groups` - 1. A row of any other group, such as -1, is left out,
            and may hold anything, even NaN.
        n_groups: groups, one at least; those without a row have sums of zero.
        centre: what is subtracted; `overall_mean` by default. Parts that are to be `combine`d need
            the same one.
        implementation: `reference`, `tiles`, or "auto".
    """
    run = choose("cross products", implementation, _IMPLEMENTATIONS, _auto())
    with jax.enable_x64(True):
        wide_x, wide_y, codes = jnp.asarray(x), jnp.asarray(y), jnp.asarray(groups, jnp.int32)
        if centre is None:
            centre = overall_mean(wide_x, wide_y, codes, n_groups=n_groups)
        about = Centre(*(jnp.asarray(part, jnp.float64) for part in centre))
        return CrossProducts._make((*run(wide_x, wide_y, codes, about, n_groups), about))


def overall_mean(
    x: Float[ArrayLike, "row feature"],
    y: Float[ArrayLike, "row target"],
    groups: Int[ArrayLike, " row"],
    *,
    n_groups: int,
) -> Centre:
    """Means over all rows of a group, float64; zero where there is none.

    They are taken about the first such row, so that a constant is its own mean to the last digit
    and has products of exactly zero.
    """
    with jax.enable_x64(True):
        codes = jnp.asarray(groups)
        own = (codes >= 0) & (codes < n_groups)
        count = jnp.maximum(own.sum(), 1).astype(jnp.float64)
        row = jnp.arange(len(codes), dtype=jnp.int32)
        first_row = jnp.where(own, row, len(codes) - 1).min()

        def mean(values: Array) -> Array:
            first = jnp.where(own.any(), values[first_row].astype(jnp.float64), 0.0)
            off = jnp.where(own[:, None], values.astype(jnp.float64) - first, 0.0)
            return first + off.sum(axis=0) / count

        return Centre(mean(jnp.asarray(x)), mean(jnp.asarray(y)))


def combine(a: CrossProducts, b: CrossProducts) -> CrossProducts:
    """Of the rows of `a` and those of `b`, which have to be about the same centre.

    Raises:
        ValueError: the centres differ. Inside `jax.jit` they are not known and not looked at.
    """
    with jax.enable_x64(True):
        for name, one, other in zip(Centre._fields, a.centre, b.centre, strict=True):
            traced = isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer)
            if not traced and not jnp.array_equal(one, other):
                raise ValueError(
                    f"cross products about two centres of {name} do not add up; compute both with "
                    "the same centre="
                )
        sums = (one + other for one, other in zip(a[:-1], b[:-1], strict=True))
        return CrossProducts._make((*sums, a.centre))
