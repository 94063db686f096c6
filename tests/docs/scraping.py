"""Prometheus' configuration with what docs/operations.md adds to it for TLS and tokens."""

from docs.pages import ROOT, blocks

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
_TARGETS = '    static_configs: [{targets: ["127.0.0.1:9464"]}]\n'


def config_with_documented_lines() -> str:
    """Return the shipped configuration with the page's lines at the end of its first job, as a reader puts them."""
    [lines] = [block.text for block in blocks("docs/operations.md") if block.text.startswith("    scheme: https")]
    config = CONFIG.read_text()
    if config.count(_TARGETS) != 1:
        raise ValueError(f"{CONFIG}: the first job's targets are not where the page's lines follow them")
    return config.replace(_TARGETS, _TARGETS + lines)
