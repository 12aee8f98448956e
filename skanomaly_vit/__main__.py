"""``python -m skanomaly_vit`` is the command ``skanomaly``."""

from __future__ import annotations

from skanomaly_vit.cli import main

if __name__ == "__main__":
    main(prog_name="skanomaly")
