"""The command ``skanomaly``."""

from skanomaly_vit.cli._commands import main

__all__ = ["main"]
