"""Pictures in files, as arrays of numbers from 0 to 1; what is too large is refused unread."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bilevel.files.needs import needs

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm"))
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM")
MOST_PIXELS = 100_000_000  # of one picture, and of a folder
MOST_FILES = 10_000


class Picture(NamedTuple):
    """A picture and where it comes from."""

    file: Path
    pixels: Float[np.ndarray, "height width channels"]  # 0 is black, 1 is white; 1 or 3 channels

    @property
    def gray(self) -> Float[np.ndarray, "height width"]:
        """Its brightness, by the weights of ITU-R BT.601."""
        if self.pixels.shape[-1] == 1:
            return self.pixels[..., 0]
        return self.pixels @ np.array([0.299, 0.587, 0.114])


def read_pictures(folder: str | Path) -> list[Picture]:
    """The pictures of a folder, in the order of their names; other files are passed over.

    Args:
        folder: with PNG, JPEG, TIFF, BMP, WebP or PPM files. Folders in it are not read.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: in one sentence, with the file: there is no picture, one cannot be read, or
            they hold more than 100 million pixels.
        ImportError: Pillow is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        kind = "is a file" if folder.is_file() else "does not exist"
        raise FileNotFoundError(f"{folder} {kind}; a folder of pictures is needed.")
    files = sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no picture; PNG, JPEG, TIFF, BMP, WebP and PPM are read.")
    if len(files) > MOST_FILES:
        raise ValueError(f"{folder} holds {len(files)} pictures; at most {MOST_FILES} are read.")
    pictures, left = [], MOST_PIXELS
    for file in files:
        pictures.append(read_picture(file, left))
        left -= pictures[-1].pixels[..., 0].size
    return pictures


def read_picture(file: str | Path, most_pixels: int = MOST_PIXELS) -> Picture:
    """One picture; the first frame of a file with several, without transparency.

    Raises:
        ValueError: it is no picture, is damaged, or has more pixels than that.
        ImportError: Pillow is not installed.
    """
    file = Path(file)
    image = needs("PIL.Image", extra="pictures", what="pictures")
    with _readable(file), image.open(file, formats=FORMATS) as opened:
        width, height = opened.size
        if width * height > most_pixels:
            raise _TooLarge(
                f"{file} has {width} x {height} pixels, and {most_pixels:,} are left to be read; "
                "make it smaller or take some pictures away."
            )
        deep = opened.mode.startswith(("I", "F"))  # 16 bits and more
        wanted = opened.mode if deep or opened.mode in ("L", "RGB") else "RGB"
        wanted = "L" if opened.mode in ("1", "LA", "La") else wanted
        pixels = np.asarray(opened.convert(wanted), np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError(f"{file} has a pixel that is not finite.")
    white = 255 if not deep else 65535 if wanted.startswith("I") else 1
    return Picture(file, np.clip(pixels.reshape(height, width, -1) / white, 0, 1))


def write_picture(file: str | Path, pixels: Float[np.ndarray, "height width channels"]) -> None:
    """Save as the suffix says, 8 bits a channel; what is below 0 or above 1 is cut off."""
    image = needs("PIL.Image", extra="pictures", what="pictures")
    bytes_ = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    image.fromarray(bytes_[..., 0] if bytes_.shape[-1] == 1 else bytes_).save(file)


class _TooLarge(ValueError):
    pass


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[Any]:
    """Turns what Pillow raises on damaged files into one sentence."""
    try:
        yield
    except _TooLarge:
        raise
    except MemoryError:
        raise
    except Exception as error:  # a decoder raises anything: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{file} cannot be read as a picture: {error}") from error
