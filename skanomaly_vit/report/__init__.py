"""HTML report on scored images: one HTML file without network access."""

from skanomaly_vit.report._report import write_report
from skanomaly_vit.report._written import Report

__all__ = ["Report", "write_report"]
