"""Pictures from image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mer_export.data.media.tracks import MOST_PIXELS
from mer_export.errors import InputError, NotAvailableError
from mer_export.install import not_installed
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.media_files import require_file

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Kinds of image files; Pillow knows others that start programs."""
DEEP = ("I", "F")
"""Modes of more than 8 bits, which Pillow would cut to white."""


def read_picture(path: Path | str) -> np.ndarray:
    """One picture (height, width, 3) uint8 in red, green, blue, turned as its EXIF orientation says.

    Raises:
        InputError: the file is missing, no image, empty, damaged, huge, or has more than 8 bits a channel.
        NotAvailableError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise NotAvailableError(not_installed("Pillow, which reads pictures,", "media", "faces")) from None
    path = Path(path)
    require_file(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            # One pixel of three channels may come from less than a byte, hundreds of them do not.
            if image.width * image.height > MOST_PIXELS:
                size = f"{image.width} x {image.height}"
                raise InputError(f"{path} is a picture of {size}, more than {MOST_PIXELS} pixels: scale it down")
            Budget.of(path).take(3 * image.width * image.height)
            if image.mode.startswith(DEEP):
                raise InputError(f"{path} has more than 8 bits a channel ({image.mode}): convert it to 8 bits")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({' '.join(str(error).split())[:100]})") from None
