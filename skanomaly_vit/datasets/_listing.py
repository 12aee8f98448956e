"""Images of any folder, as a command lists them."""

from __future__ import annotations

from skanomaly_vit._images.listing import LeftOut, walk_images
from skanomaly_vit.datasets._folders import StrPath, find_folder

_FOLDER = "a folder of images"


def list_images(folder: StrPath) -> list[str]:
    """List the images of a folder and of those below it.

    Images are the files whose suffix the installed Pillow opens, such as ``.png``, ``.jpg``,
    ``.jfif`` or ``.avif``. The function leaves out hidden files, and opens none.

    Parameters
    ----------
    folder : str or path-like
        The folder; ``~`` is the home of the user.

    Returns
    -------
    paths : list of str
        Each folder in the order of its names, the folders in it among them. Each path begins
        with `folder`.

    Raises
    ------
    ValueError
        If there is no image; the message counts the other files by their suffix.
    FileNotFoundError
        If there is no such folder.
    OSError
        If a folder cannot be listed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from skanomaly_vit.datasets import list_images
    >>> folder = tempfile.TemporaryDirectory()
    >>> for name in ["a.png", "b.jfif", "notes.txt"]:
    ...     Path(folder.name, name).touch()
    >>> [Path(path).name for path in list_images(folder.name)]
    ['a.png', 'b.jfif']
    >>> folder.cleanup()
    """

    def fail(path: str, error: OSError) -> None:
        raise error

    left_out = LeftOut()
    found = str(find_folder(folder, _FOLDER))
    images = list(walk_images(found, fail, left_out))
    if not images:
        also = f"; there are {left_out}" if left_out else ""
        raise ValueError(f"{found!r} and the folders below it hold no images{also}")
    return images
