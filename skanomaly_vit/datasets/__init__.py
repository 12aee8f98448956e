"""Data sets on the disk, as paths of images and their labels.

The functions download nothing: each one reads an unpacked data set in its published layout. Images
are paths, sorted by class and file name, and the detector decodes them when it needs them. Only IDX
files give pixels, since one file holds all images. Another layout raises an error that names the
folder and its entries. The functions ignore hidden files, and files without the suffix of an image.

>>> import tempfile
>>> from pathlib import Path
>>> from PIL import Image
>>> from skanomaly_vit.datasets import load_image_folder
>>> folder = tempfile.TemporaryDirectory()
>>> for name in ["cat/1.png", "cat/2.png", "dog/1.png"]:
...     path = Path(folder.name, name)
...     path.parent.mkdir(exist_ok=True)
...     Image.new("L", (8, 8)).save(path)
>>> animals = load_image_folder(folder.name)
>>> [Path(path).name for path in animals.images]
['1.png', '2.png', '1.png']
>>> animals.labels.tolist()
['cat', 'cat', 'dog']
>>> folder.cleanup()
"""

from skanomaly_vit._images.masks import read_mask
from skanomaly_vit.datasets._cats_vs_dogs import load_cats_vs_dogs
from skanomaly_vit.datasets._dior import crop_objects, load_dior
from skanomaly_vit.datasets._elpv import load_elpv
from skanomaly_vit.datasets._idx import FASHION_MNIST_CLASSES, load_fashion_mnist, load_idx
from skanomaly_vit.datasets._image_folder import load_image_folder
from skanomaly_vit.datasets._listing import list_images
from skanomaly_vit.datasets._mvtec import load_mvtec
from skanomaly_vit.datasets._pasted_defects import paste_defects

__all__ = [
    "FASHION_MNIST_CLASSES",
    "crop_objects",
    "list_images",
    "load_cats_vs_dogs",
    "load_dior",
    "load_elpv",
    "load_fashion_mnist",
    "load_idx",
    "load_image_folder",
    "load_mvtec",
    "paste_defects",
    "read_mask",
]
