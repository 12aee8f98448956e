"""HTML report on scored images: one HTML file without network access."""

from skanomaly_vit.report._report import write_report

__all__ = ["write_report"]
