"""The templates of the pages: Jinja with escaping, and with what untrusted text needs beyond it."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unerase_backend.report.text import outside, prose, visible, whole
from unerase_backend.runtime.counting import counted


def environment(*packages: str) -> Environment:
    """Return the templates that lie beside the modules of packages; the first that has a name gives it."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package, ".") for package in packages]),
        # Templates do not change while the program runs.
        auto_reload=False,
        autoescape=True,
        undefined=StrictUndefined,
        # Makes invisible characters visible everywhere on the page, including in attributes.
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"outside": outside, "whole": whole, "prose": prose, "counted": counted}
    return made
