"""``python -m skanomaly_vit`` is the command ``skanomaly``."""

from skanomaly_vit.cli import main

if __name__ == "__main__":
    main(prog_name="skanomaly")
