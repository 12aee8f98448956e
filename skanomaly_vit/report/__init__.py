"""A report on scored images: one HTML file to hand to someone else."""

from skanomaly_vit.report._report import write_report

__all__ = ["write_report"]
