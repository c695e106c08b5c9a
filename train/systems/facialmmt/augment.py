"""Changes of face crops in training (section 6): colours, blur, erased boxes. All random streams are torch's.

Images are float32 (items, 3, size, size) with values -1..1, channels blue, green, red, as the network takes them; the
original calls the first one red, so do these functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Images = Float[Tensor, "... 3 size size"]
LUMA = (0.2989, 0.587, 0.114)
GREY, JITTERED, BLURRED, ERASED = 0.8, 0.2, 0.5, 0.25
"""Parts of the images that are changed. The original's wrapper takes 0.2, 0.8 and 0.5 for parts that are not."""


def jitter_faces(images: Images, strength: float) -> Images:
    """Brightness, contrast, saturation and hue of every image changed at random, in random order."""
    flat = images.flatten(0, -4)
    changed = [_from_unit(jitter(_to_unit(x), strength)) for x in flat]
    return torch.stack(changed).reshape(images.shape) if changed else images


def augment_faces(images: Images) -> Images:
    """Grey, other colours, blur and an erased box, each on some of the images."""
    found = []
    for image in images:
        x = _to_unit(image)
        x = _grey(x).expand(3, -1, -1) if _chance(GREY) else x
        x = jitter(x, 0.4) if _chance(JITTERED) else x
        x = blur(x, _between(0.1, 2.0)) if _chance(BLURRED) else x
        x = _from_unit(x)
        found.append(erase(x) if _chance(ERASED) else x)
    return torch.stack(found)


def jitter(x: Images, strength: float) -> Images:
    """One image with values 0..1; each factor is drawn within `strength` of 1, hue within `strength` of a turn."""
    low, high = max(0.0, 1 - strength), 1 + strength
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda x: _blend(x, torch.zeros_like(x), _between(low, high)),
        lambda x: _blend(x, _grey(x).mean().expand_as(x), _between(low, high)),
        lambda x: _blend(x, _grey(x).expand_as(x), _between(low, high)),
        lambda x: turn_hue(x, _between(-min(strength, 0.5), min(strength, 0.5))),
    ]
    for i in torch.randperm(len(ways)).tolist():
        x = ways[i](x)
    return x


def turn_hue(x: Images, by: float) -> Images:
    """Turns the hue of an image with values 0..1 by a part of a full turn."""
    high, low = x.amax(0), x.amin(0)
    spread = (high - low).clamp(min=1e-8)
    red, green, blue = ((high - c) / spread for c in x)
    hue = torch.where(high == x[0], blue - green, torch.where(high == x[1], 2 + red - blue, 4 + green - red))
    hue = (hue / 6 + by) % 1.0
    # Each channel falls from the highest value to the lowest with the distance of the hue from its own.
    shifts = torch.tensor([5.0, 3.0, 1.0], device=x.device)[:, None, None]
    distance = (shifts + hue * 6) % 6
    return high - (high - low) * torch.minimum(distance, 4 - distance).clamp(0, 1)


def blur(x: Images, sigma: float) -> Images:
    """Gaussian blur of one image."""
    reach = min(max(1, math.ceil(3 * sigma)), x.shape[-1] - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sigma) ** 2)
    kernel = (weights / weights.sum()).to(x.dtype)
    padded = functional.pad(x[:, None], (reach, reach, reach, reach), mode="reflect")
    rows = functional.conv2d(padded, kernel[None, None, None])
    return functional.conv2d(rows, kernel[None, None, :, None])[:, 0]


def erase(x: Images) -> Images:
    """One box of 2 to 33 % of the area becomes noise."""
    size = x.shape[-1]
    for _ in range(10):
        area = size * size * _between(0.02, 1 / 3)
        aspect = math.exp(_between(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < size and 0 < width < size:
            top, left = (int(torch.randint(0, size - n + 1, ()).item()) for n in (height, width))
            x = x.clone()
            x[:, top : top + height, left : left + width] = torch.randn(3, height, width, device=x.device)
            break
    return x


def _to_unit(x: Tensor) -> Tensor:
    return x * 0.5 + 0.5


def _from_unit(x: Tensor) -> Tensor:
    return (x - 0.5) / 0.5


def _blend(x: Tensor, other: Tensor, share: float) -> Tensor:
    return (share * x + (1 - share) * other).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    return sum(w * c for w, c in zip(LUMA, x, strict=True))[None]  # type: ignore[index]


def _chance(share: float) -> bool:
    return bool(torch.rand(()) < share)


def _between(low: float, high: float) -> float:
    return float(low + (high - low) * torch.rand(()))
