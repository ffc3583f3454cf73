"""How names and numbers are put, wherever they are: in sentences, tables, figures and the page."""

from __future__ import annotations

LEAST_PERMUTATIONS = 20  # with fewer, no p_max can be below 0.05
