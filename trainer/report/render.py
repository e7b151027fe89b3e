"""Markdown from the templates of this folder."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..markdown import Markdown, bullets, code, escape, show


def render(template: str, /, **values: Any) -> str:
    """The text of `templates/{template}.md.j2` with these values.

    Every value is escaped for Markdown, unless it is a `Markdown` already: file names, labels and
    headers come from data sets and may hold anything. A name that the template misses is an error.
    """
    return _ENVIRONMENT.get_template(f"{template}.md.j2").render(**values).strip() + "\n"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=False,  # noqa: S701  that is for HTML; `finalize` escapes for Markdown
        undefined=StrictUndefined,
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "show": show,
        "code": code,
        "bullets": bullets,
        "three": lambda value: f"{value:.3f}",
        "markdown": Markdown,
    }
    return environment


_ENVIRONMENT = _environment()
