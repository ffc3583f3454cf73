"""A report as one HTML page that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files as resources
from urllib.parse import quote

from featurestore import __version__
from featurestore.files import replacing
from featurestore.report import page_figures
from featurestore.report.contents import Contents
from featurestore.report.page_data import inert_json, payload
from featurestore.report.page_sections import maps, sections, utterances
from featurestore.report.wording import raised

_ASSETS = "featurestore.report.assets"


def write_page(
    contents: Contents, path: str | os.PathLike[str], *, files: Sequence[str] = ()
) -> None:
    """Write a report as one HTML file, which is replaced whole.

    The page holds everything it shows, loads nothing and runs no script but its own: a policy in it
    names these by their hashes. Names and texts of a corpus are shown as they are written,
    whatever markup they contain. The same contents are the same bytes.

    Args:
        contents: of the report. Sections about empty tables are left out.
        path: file to write.
        files: names of files beside the page (tables, figures), to be linked from it.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    with replacing(path) as temporary:
        # Names of files that are not UTF-8 have characters that cannot be written as they are.
        temporary.write_bytes(page_html(contents, files=files).encode("utf-8", "replace"))


def page_html(contents: Contents, *, files: Sequence[str] = ()) -> str:
    """The page as text; see `write_page`."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["raised"] = raised
    parts, chosen = sections(contents), utterances(contents)
    figures = [figure for section in parts for figure in section.figures]
    figures += [one.figure for one in chosen]
    data = payload(
        contents,
        figures={figure.name: figure.spec for figure in figures},
        curves=page_figures.layer_curves(contents),
        style=page_figures.STYLE,
    )
    # Carriage returns would be line feeds by the time a browser computes the hash.
    scripts = [_line_feeds(get_plotlyjs()), _line_feeds(_asset("page.js"))]
    return environment.get_template("page.html").render(
        contents=contents,
        sections=parts,
        maps=maps(contents),
        utterances=chosen,
        files=[(name, "./" + quote(name)) for name in files],
        data=inert_json(data),
        style=_asset("page.css"),
        scripts=scripts,
        policy=policy(scripts),
        version=__version__,
    )


def policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy that allows these inline scripts and no request at all.

    Styles may be inline because plotly.js writes them; pictures may be made by scripts, since heat
    maps are drawn as such.
    """
    return "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _asset(name: str) -> str:
    return resources(_ASSETS).joinpath(name).read_text(encoding="utf-8")
