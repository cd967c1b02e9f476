"""Fill pages that open offline: one HTML file each, nothing fetched, nothing run, all escaped.

A page's one style sheet is inside it and named by its hash in the content security policy, so a
browser takes no other style from it, and neither scripts nor anything from elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from potstill.reporting.table import number
from potstill.storage.manifest import sha256

EXCERPT = 160  # characters of a text in a table


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill one of the templates as a page.

    Args:
        values: for the template, all of which it escapes but for figures (`Markup`).
    """
    file = resources.files("potstill.reporting") / "templates" / "page.css"
    style = file.read_text(encoding="utf-8")
    digest = base64.b64encode(bytes.fromhex(sha256(style.encode()))).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return filled(template, {**values, "style": Markup(style), "policy": policy})  # ours, too


def filled(
    template: str,
    values: Mapping[str, Any],
    loader: jinja2.BaseLoader | None = None,
    finalize: Callable[[Any], str] | None = None,
) -> str:
    """Fill a template with values, all of which it escapes except `Markup`.

    Args:
        loader: Finds the template; None: among those of this package.
        finalize: Escapes every value in its own way, for what is not HTML; None: HTML.
    """
    environment = jinja2.Environment(
        loader=loader or jinja2.PackageLoader("potstill.reporting"),
        autoescape=finalize is None,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=finalize is not None,
    )
    environment.filters |= {"excerpt": excerpt, "sentence": sentence}
    return environment.get_template(template).render(values)


def sentence(text: str) -> str:
    """Return a clause as a sentence: a capital first, a full stop last."""
    return f"{text[0].upper()}{text[1:]}."


def excerpt(value: Any, most: int = EXCERPT) -> str:
    """Return a value as one line of text, shortened where it is long."""
    text = " ".join(str("" if value is None else value).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each leaf of nested mappings; a list is one leaf."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            label = str(key).replace("_", " ")
            yield from flat(item, f"{name}, {label}" if name else label)
    elif value not in (None, "", [], {}):
        yield name, _leaf(value)


def _leaf(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    return ", ".join(map(_leaf, value)) if isinstance(value, list) else str(value)
