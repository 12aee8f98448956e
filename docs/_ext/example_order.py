"""Order of the examples in the gallery: the one in which they teach."""

from __future__ import annotations

#: First what the detector finds, then what to do with it, then what is inside.
ORDER = (
    "plot_solar_cells",
    "plot_anomaly_maps",
    "plot_score_gallery",
    "plot_alarms",
    "plot_large_image",
    "plot_pasted_defects",
    "plot_grid_search",
    "plot_pretraining_confusion",
    "plot_own_density",
    "plot_dask_scoring",
    "plot_block_discrepancies",
    "plot_method_by_hand",
)


class TeachingOrder:
    """Key by which sphinx-gallery sorts; an example that is not listed is an error.

    Parameters
    ----------
    src_dir : str
        Folder of the examples.
    """

    def __init__(self, src_dir: str) -> None:
        self.src_dir = src_dir

    def __call__(self, filename: str) -> int:
        """Place of an example."""
        return ORDER.index(filename.removesuffix(".py"))
