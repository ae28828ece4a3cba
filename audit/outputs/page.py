"""The one way that this project makes an HTML page: escaped, strict about what is missing, of one file."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_environment(package: str) -> Environment:
    """Return the templates of `package`. Every value is escaped: names of tensors and runs come from strangers."""
    return Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
