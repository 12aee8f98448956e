"""Images of many encodings, mutations of them, and what became of each; decided by a seed alone."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from strict_png import chunks, decode_png, join_chunks

from skanomaly_vit._images.opening import open_images
from skanomaly_vit.exceptions import AmbiguousImageWarning

#: What may become of a mutant. The last two are failures.
REFUSED, EQUAL, WARNED, UNPROTECTED = "refused", "equal", "warned", "unprotected"
SILENT, FOREIGN = "SILENT WRONG", "FOREIGN ERROR"
OUTCOMES = (REFUSED, EQUAL, WARNED, UNPROTECTED, SILENT, FOREIGN)

Pixels = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Original:
    """An image, and the pixels that it shows.

    Attributes
    ----------
    name, form : str
        Name, and format or kind of object.
    item : bytes, PIL.Image.Image or ndarray
    pixels : ndarray of shape (height, width, 3), float64
        White is 1.
    """

    name: str
    form: str
    item: Any
    pixels: Pixels


@dataclass(frozen=True)
class Mutant:
    """A mutated image.

    Attributes
    ----------
    original : Original
    mutation : str
    item : object
    pixels : ndarray or None
        What it has to show if it is read; None if it has to be refused or told.
    is_protected : bool
        Whether format and mutation leave a trace by which a reader can tell. False for changed
        bytes in a format without checksums.
    """

    original: Original
    mutation: str
    item: Any
    pixels: Pixels | None
    is_protected: bool = True


def shown(array: Pixels, white: float = 255) -> Pixels:
    """Pixels of any shape and type as float64 (h, w, 3), white 1."""
    pixels = np.asarray(array, np.float64) / white
    return np.broadcast_to(
        pixels if pixels.ndim == 3 else pixels[..., None], (*pixels.shape[:2], 3)
    )


def over_white(rgba: Pixels) -> Pixels:
    """Pixels of uint8 (h, w, 4) over white."""
    color, alpha = rgba[..., :3] / 255, rgba[..., 3:] / 255
    return color * alpha + 1 - alpha


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corpus(seed: int = 0) -> list[Original]:
    """One image of every encoding."""
    rng = np.random.default_rng(seed)
    return [*_lossless(rng), *_lossy(rng), *_in_memory(rng)]


def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _drawn(rng: np.random.Generator) -> Pixels:
    """A picture of uint8 (26, 31, 3) with edges, gradients and noise, and a bright corner."""
    y, x = np.mgrid[:26, :31]
    planes = [60 + 3 * x + 2 * y, 200 - 4 * x, 40 + 5 * y + (x > 12) * 50]
    pixels = np.stack(planes, axis=-1) + rng.normal(0, 9, (26, 31, 3))
    pixels[:3, :3] = 250
    return pixels.clip(0, 255).astype(np.uint8)


def _lossless(rng: np.random.Generator) -> Iterator[Original]:
    rgb = _drawn(rng)
    grey, alpha = rgb[..., 0], rgb[..., 1]
    wide = (grey.astype(np.uint16) * 257 - 90 * (grey > 9)).astype(np.uint16)
    bits = (grey > 120).astype(np.uint8) * 255
    rgba = np.dstack([rgb, alpha])
    palette = Image.fromarray(rgb).quantize(40)
    colors = shown(np.asarray(palette.convert("RGB")))
    images = {
        "RGB": (Image.fromarray(rgb), shown(rgb)),
        "L": (Image.fromarray(grey), shown(grey)),
        "1": (Image.fromarray(bits).convert("1"), shown(bits)),
        "P": (palette, colors),
        "LA": (Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]),
               over_white(np.dstack([grey, grey, grey, alpha]))),
        "RGBA": (Image.fromarray(rgba), over_white(rgba)),
        "I;16": (Image.fromarray(wide), shown(wide, 65535)),
    }  # fmt: skip
    lossless = {"PNG": "RGB L 1 P LA RGBA I;16", "TIFF": "RGB L 1 P LA RGBA I;16", "GIF": "L P",
                "BMP": "RGB L P", "PPM": "RGB L I;16", "WEBP": "RGB L RGBA", "TGA": "RGB L P RGBA",
                "JPEG2000": "RGB L RGBA I;16"}  # fmt: skip
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}
    for kind, modes in lossless.items():
        for mode in modes.split():
            image, pixels = images[mode]
            data = encoded(image, kind, **options.get(kind, {}))
            yield Original(f"{kind} {mode}", kind, data, pixels)
    plain = Image.fromarray(rgb)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        data = encoded(plain, "TIFF", compression=compression)
        yield Original(f"TIFF {compression}", "TIFF", data, shown(rgb))
    real = (grey / np.float32(255)).astype(np.float32)
    yield Original("TIFF F", "TIFF", encoded(Image.fromarray(real), "TIFF"), shown(real, 1))
    yield Original("PNG sRGB", "PNG", encoded(plain, "PNG", icc_profile=_srgb()), shown(rgb))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = shown(np.rot90(rgb, -1))
    for kind in ("PNG", "TIFF", "WEBP"):
        data = encoded(plain, kind, exif=exif, **options.get(kind, {}))
        yield Original(f"{kind} turned", kind, data, turned)
    clear = tuple(int(value) for value in rgb[5, 5])
    pixels = np.where((rgb == clear).all(axis=2, keepdims=True), 1, shown(rgb))
    yield Original("PNG RGB, tRNS", "PNG", encoded(plain, "PNG", transparency=clear), pixels)
    pages = {"save_all": True, "append_images": [plain.transpose(Image.Transpose.ROTATE_180)]}
    yield Original("TIFF pages", "TIFF", encoded(plain, "TIFF", **pages), shown(rgb))
    yield Original(
        "WEBP frames", "WEBP", encoded(plain, "WEBP", lossless=True, **pages), shown(rgb)
    )
    yield from _written_by_hand(grey, rgb)


def _written_by_hand(grey: Pixels, rgb: Pixels) -> Iterator[Original]:
    """Encodings that Pillow does not write."""
    height, width = grey.shape
    for depth in (1, 2, 4):
        white = 2**depth - 1
        values = grey >> (8 - depth)
        rows = [b"\0" + _packed(row, depth) for row in values]
        transparent = values == 0
        pixels = np.where(transparent, white, values)
        head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
        parts = [(b"IHDR", head), (b"tRNS", struct.pack(">H", 0))]
        parts += [(b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
        yield Original(f"PNG {depth} bits, tRNS", "PNG", join_chunks(parts), shown(pixels, white))
    deep = rgb.astype(">u2") * 257 - 90 * (rgb > 9)
    rows = [b"\0" + row.astype(">u2").tobytes() for row in deep]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    yield Original("PNG RGB of 16 bits", "PNG", join_chunks(parts), shown(deep, 65535))
    values = (grey // 3).astype(np.uint8)
    data = b"P5\n%d %d\n100\n" % (width, height) + values.tobytes()
    yield Original("PPM white 100", "PPM", data, shown(np.rint(values * 2.55)))
    deep = (grey.astype(np.uint16) * 16).astype(">u2")
    data = b"P5\n%d %d\n4095\n" % (width, height) + deep.tobytes()
    yield Original("PPM 12 bits", "PPM", data, shown(deep, 4095))
    twelve = grey.astype(np.uint16)[:, : width - 1] * 16
    pairs = twelve.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1
    )
    strip = packed.astype(np.uint8).tobytes()
    tags = [(256, width - 1), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1),
            (278, height), (279, len(strip))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    tiff = b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip
    tiff += struct.pack("<H", len(tags)) + entries + bytes(4)
    yield Original("TIFF 12 bits", "TIFF", tiff, shown(twelve, 4095))


def _packed(row: Pixels, depth: int) -> bytes:
    per_byte = 8 // depth
    padded = np.pad(row, (0, -len(row) % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(8 - depth, -1, -depth)
    return (padded << shifts).sum(axis=1).astype(np.uint8).tobytes()


def _lossy(rng: np.random.Generator) -> Iterator[Original]:
    """Their pixels are those of Pillow: what is tested is that mutations do not go unseen."""
    image = Image.fromarray(_drawn(rng))
    exif = Image.Exif()
    exif[0x0112] = 8
    variants: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
        "JPEG RGB": ("JPEG", image, {}),
        "JPEG 4:4:4": ("JPEG", image, {"subsampling": 0}),
        "JPEG L": ("JPEG", image.convert("L"), {}),
        "JPEG progressive": ("JPEG", image, {"progressive": True}),
        "JPEG restarts": ("JPEG", image, {"restart_marker_blocks": 2}),
        "JPEG turned": ("JPEG", image, {"exif": exif}),
        "JPEG profile": ("JPEG", image, {"icc_profile": _srgb()}),
        "JPEG CMYK": ("JPEG", image.convert("CMYK"), {}),
        "WEBP lossy": ("WEBP", image, {}),
        "AVIF": ("AVIF", image, {}),
        "TIFF jpeg": ("TIFF", image, {"compression": "jpeg"}),
    }
    for name, (kind, variant, options) in variants.items():
        data = encoded(variant, kind, **options)
        with Image.open(io.BytesIO(data)) as found:
            pixels = np.asarray(found.convert("RGB"))
        yield Original(name, kind, data, shown(np.rot90(pixels) if "exif" in options else pixels))


def _in_memory(rng: np.random.Generator) -> Iterator[Original]:
    rgb = _drawn(rng)
    for name, dtype, white in (("uint8", np.uint8, 255), ("uint16", np.uint16, 65535),
                               ("float16", np.float16, 1), ("float32", np.float32, 1),
                               ("float64", np.float64, 1)):  # fmt: skip
        values = (rgb / 255 * white).astype(dtype)
        yield Original(f"array {name}", "array", values, shown(values, white))
        yield Original(f"array {name} grey", "array", values[..., 0], shown(values[..., 0], white))
    for mode in ("RGB", "L", "RGBX", "HSV", "YCbCr", "P"):
        image = Image.fromarray(rgb).convert(mode)
        yield Original(f"PIL {mode}", "PIL", image, shown(np.asarray(image.convert("RGB"))))


# Mutations


def mutate(original: Original, rng: np.random.Generator) -> Mutant:
    """One mutation of an image, chosen by a generator."""
    known: dict[str, list[Callable[[Original, np.random.Generator], Mutant | None]]] = {
        "array": [_array_form, _array_damage],
        "PIL": [_pil_form],
        "PNG": [*_FILE, _png_rewritten, _png_without_chunk, _png_header, _png_data],
        "JPEG": [*_FILE, _jpeg_segment, _jpeg_size, _jpeg_ended],
        "BMP": [*_FILE, _bmp_size],
        "PPM": [*_FILE, _ppm_header],
    }
    chosen = known.get(original.form, list(_FILE))
    while True:
        mutant = chosen[rng.integers(len(chosen))](original, rng)
        if mutant is not None:
            return mutant


def _same(original: Original, mutation: str, item: Any) -> Mutant:
    return Mutant(original, mutation, item, original.pixels)


def _flipped(original: Original, rng: np.random.Generator) -> Mutant:
    data = bytearray(original.item)
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return Mutant(original, "flipped bits", bytes(data), original.pixels, _checks(original))


def _overwritten(original: Original, rng: np.random.Generator) -> Mutant:
    data = bytearray(original.item)
    start = int(rng.integers(len(data)))
    end = min(len(data), start + int(rng.integers(1, 30)))
    data[start:end] = bytes(end - start)
    return Mutant(original, "zeroed bytes", bytes(data), original.pixels, _checks(original))


def _shifted(original: Original, rng: np.random.Generator) -> Mutant:
    data, at = original.item, int(rng.integers(len(original.item)))
    size = int(rng.integers(1, 30))
    if rng.random() < 0.5:
        item = data[:at] + data[at + size :]
    else:
        item = data[:at] + rng.bytes(size) + data[at:]
    return Mutant(original, "bytes lost or added", item, original.pixels, _checks(original))


def _checks(original: Original) -> bool:
    """Whether the format has checksums of its pixels."""
    return original.form == "PNG"


def _truncated(original: Original, rng: np.random.Generator) -> Mutant:
    end = int(rng.integers(len(original.item)))
    return Mutant(original, "truncated", original.item[:end], original.pixels)


def _wrong_signature(original: Original, rng: np.random.Generator) -> Mutant:
    data = bytearray(original.item)
    data[: int(rng.integers(2, 9))] = rng.bytes(int(rng.integers(2, 9)))
    return Mutant(original, "wrong signature", bytes(data), original.pixels)


def _with_trailer(original: Original, rng: np.random.Generator) -> Mutant | None:
    if original.form not in ("PNG", "JPEG", "BMP", "GIF", "TIFF"):
        return None
    return _same(original, "trailing bytes", original.item + rng.bytes(40))


def _lossless_twin(original: Original, rng: np.random.Generator) -> Mutant | None:
    pixels = np.rint(original.pixels * 255).astype(np.uint8)
    if not np.allclose(pixels / 255, original.pixels, atol=1e-6):
        return None
    kinds = {"PNG": {}, "BMP": {}, "PPM": {}, "TIFF": {}, "WEBP": {"lossless": True}}
    kind = str(rng.choice(list(kinds)))
    item = encoded(Image.fromarray(pixels), kind, **kinds[kind])
    return _same(original, "written again without loss", item)


_FILE = (_flipped, _overwritten, _shifted, _truncated, _wrong_signature, _with_trailer,
         _lossless_twin)  # fmt: skip


def _png(original: Original, mutation: str, parts: list[tuple[bytes, bytes]]) -> Mutant:
    """A PNG with right checksums, whose pixels a second reader tells, or that it is none."""
    data = join_chunks(parts)
    try:
        pixels = decode_png(data)
    except ValueError:
        pixels = None
    return Mutant(original, mutation, data, pixels)


def _png_rewritten(original: Original, rng: np.random.Generator) -> Mutant:
    parts = [(name, data) for name, data in chunks(original.item) if name != b"IDAT"]
    raw = zlib.decompress(b"".join(d for n, d in chunks(original.item) if n == b"IDAT"))
    data = zlib.compress(raw, int(rng.integers(10)))
    cut = int(rng.integers(len(data)))
    text = (b"tEXt", b"Comment\0" + bytes(rng.integers(65, 90, 9, dtype=np.uint8)))
    item = join_chunks([*parts[:-1], text, (b"IDAT", data[:cut]), (b"IDAT", data[cut:]), parts[-1]])
    return _same(original, "compressed again, with a text", item)


def _png_without_chunk(original: Original, rng: np.random.Generator) -> Mutant:
    parts = chunks(original.item)
    del parts[int(rng.integers(len(parts)))]
    if any(name == b"iCCP" for name, _ in parts) or any(n == b"eXIf" for n, _ in parts):
        parts = [each for each in parts if each[0] not in (b"iCCP", b"eXIf")]
    return _png(original, "chunk removed", parts)


def _png_header(original: Original, rng: np.random.Generator) -> Mutant:
    (name, head), *parts = [p for p in chunks(original.item) if p[0] not in (b"iCCP", b"eXIf")]
    width, height, depth, color, *rest = struct.unpack(">IIBBBBB", head)
    field = int(rng.integers(4))
    if field < 2:
        change = int(rng.choice([-20, -1, 1, 40]))
        width, height = width + change * (field == 0), height + change * (field == 1)
    elif field == 2:
        depth = int(rng.choice([1, 2, 4, 8, 16]))
    else:
        color = int(rng.choice([0, 2, 3, 4, 6]))
    head = struct.pack(">IIBBBBB", max(1, width), max(1, height), depth, color, *rest)
    return _png(original, "lying header", [(name, head), *parts])


def _png_data(original: Original, rng: np.random.Generator) -> Mutant:
    parts = [p for p in chunks(original.item) if p[0] not in (b"iCCP", b"eXIf")]
    places = [i for i, (name, data) in enumerate(parts) if data and name != b"IHDR"]
    at = places[int(rng.integers(len(places)))]
    data = bytearray(parts[at][1])
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    parts[at] = parts[at][0], bytes(data)
    return _png(original, "flipped bit, right checksum", parts)


def _jpeg_segment(original: Original, rng: np.random.Generator) -> Mutant:
    marker = bytes([0xFF, int(rng.choice([0xFE, 0xE5, 0xEC]))])
    content = rng.bytes(int(rng.integers(60)))
    segment = marker + struct.pack(">H", len(content) + 2) + content
    return _same(original, "comment added", original.item[:2] + segment + original.item[2:])


def _jpeg_size(original: Original, rng: np.random.Generator) -> Mutant:
    data = bytearray(original.item)
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    (height,) = struct.unpack_from(">H", data, at)
    is_progressive = data[at - 4] == 0xC2
    height += int(rng.choice([16, 40, 200]))
    struct.pack_into(">H", data, at, height)
    return Mutant(original, "lying header", bytes(data), None, not is_progressive)


def _jpeg_ended(original: Original, rng: np.random.Generator) -> Mutant:
    data, start = original.item, original.item.find(b"\xff\xda")
    end = int(rng.integers(start + 20, len(data) - 30))
    # Within the last scan of a progressive file nothing tells.
    is_last = original.name == "JPEG progressive" and end > data.rfind(b"\xff\xda")
    item = data[:end] + b"\xff\xd9"
    return Mutant(original, "truncated and ended", item, original.pixels, not is_last)


def _bmp_size(original: Original, rng: np.random.Generator) -> Mutant:
    data = bytearray(original.item)
    place = int(rng.choice([18, 22]))
    (length,) = struct.unpack_from("<i", data, place)
    struct.pack_into("<i", data, place, length + int(rng.choice([-16, -8, 8, 40])))
    return Mutant(original, "lying header", bytes(data), None)


def _ppm_header(original: Original, rng: np.random.Generator) -> Mutant | None:
    head, _, rest = original.item.partition(b"\n")
    words, _, data = rest.partition(b"\n")
    numbers = [int(word) for word in words.split()]
    if len(numbers) != 2:
        return None
    numbers[int(rng.integers(2))] += int(rng.choice([-7, 9]))
    item = b"%s\n%d %d\n%s" % (head, *numbers, data)
    return Mutant(original, "lying header", item, None)


def _array_form(original: Original, rng: np.random.Generator) -> Mutant:
    array = original.item
    twice = np.repeat(array, 2, axis=0)
    forms = {
        "Fortran": np.asfortranarray(array),
        "other bytes": array.astype(array.dtype.newbyteorder()),
        "strided": twice[::2],
        "reversed": array[::-1].copy()[::-1],
        "masked nowhere": np.ma.masked_array(array),
    }
    name = str(rng.choice(list(forms)))
    return _same(original, name, forms[name])


def _array_damage(original: Original, rng: np.random.Generator) -> Mutant:
    array = original.item
    mask = np.zeros(array.shape, bool)
    mask[1, 2] = True
    channels = array if array.ndim == 3 else np.dstack([array] * 3)
    forms: dict[str, Any] = {
        "masked": np.ma.masked_array(array, mask),
        "int64": array.astype(np.int64),
        "bool": array > 0,
        "complex": array.astype(complex),
        "channels first": np.moveaxis(channels, -1, 0),
        "4 channels": np.dstack([channels, channels[..., :1]]),
        "empty": array[:0],
        "objects": array.astype(object),
    }
    if array.dtype.kind == "f":
        for name, value in (("NaN", np.nan), ("inf", np.inf), ("above 1", 1.5), ("below 0", -0.1)):
            forms[name] = array.copy()
            forms[name][3, 4] = value
    name = str(rng.choice(list(forms)))
    return Mutant(original, name, forms[name], None)


def _pil_form(original: Original, rng: np.random.Generator) -> Mutant | None:
    name = str(rng.choice(["copy", "cropped to itself", "turned four times", "closed"]))
    image = original.item
    if name == "closed":
        opened = Image.open(io.BytesIO(encoded(Image.new("RGB", (4, 4), "red"), "PNG")))
        opened.close()
        return Mutant(original, name, opened, None)
    if name == "turned four times":
        for _ in range(4):
            image = image.transpose(Image.Transpose.ROTATE_90)
    elif name == "cropped to itself":
        image = image.crop((0, 0, *image.size))
    return _same(original, name, image.copy())


# What became of it


def judge(mutant: Mutant) -> tuple[str, str]:
    """Read a mutant, and say what became of it: an outcome, and a remark."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        try:
            source = open_images([mutant.item], max_pixels=2**20)
            pixels = source[0]
            source.warn_of_doubts()
        except ValueError as error:
            is_ours = "sample 0" in str(error) and type(error).__module__ != "numpy"
            return (REFUSED if is_ours else FOREIGN), str(error)
        except Exception as error:  # noqa: BLE001 - what is looked for
            return FOREIGN, f"{type(error).__name__}: {error}"
    if any(warning.category is not AmbiguousImageWarning for warning in caught):
        return FOREIGN, str(caught[0].message)
    if caught:
        return WARNED, str(caught[0].message)
    if mutant.pixels is not None and _agree(pixels, mutant.pixels):
        return EQUAL, ""
    return (SILENT if mutant.is_protected else UNPROTECTED), f"read as {pixels.shape}"


def _agree(pixels: Pixels, expected: Pixels) -> bool:
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    # Half a level of 8 bits, to which Pillow rounds 16-bit colors and alpha is composited.
    return pixels.shape == expected.shape and bool(
        np.abs(pixels / white - expected).max() <= 1.01 / 255
    )


def mutants(n: int, seed: int = 0) -> Iterator[Mutant]:
    """Mutants in turn of all originals."""
    originals = corpus(seed)
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        yield mutate(originals[number % len(originals)], rng)
