"""Templates of pages: self-contained HTML that opens without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mer_export.errors import NotAvailableError
from mer_export.install import not_installed
from mer_export.markdown import some
from mer_export.metrics import find
from runtimes.parity.report import used_part


def render_page(template: str, content: dict[str, Any]) -> str:
    """A template of this folder with its content, as HTML text.

    Raises:
        NotAvailableError: jinja2 is missing.
    """
    try:
        import jinja2
        import markupsafe
    except ImportError:
        raise NotAvailableError(not_installed("jinja2", "report")) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "bucket": lambda bucket: "any" if bucket is None else bucket.name,
        "error": lambda value: "0" if value == 0 else f"{value:.1e}",
        "metric": find,
        "used_part": used_part,
        "soft": lambda text: markupsafe.escape(text).replace("_", markupsafe.Markup("_<wbr>")),
        "some": some,
        "svg": markupsafe.Markup,
    }
    return environment.get_template(template).render(**content)
