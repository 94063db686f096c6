"""Drawn figures: ellipses in tones of skin, crude enough for anybody to look at, in which NudeNet still sees parts."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def figure(seed: int, side: int) -> np.ndarray:
    """A drawn figure from the front, (side, side, 3)."""
    draws = np.random.default_rng(seed)
    scale = side / 512
    tone = np.array([draws.integers(150, 245), draws.integers(110, 190), draws.integers(80, 160)])
    picture = Image.new("RGB", (side, side), tuple(int(value) for value in draws.integers(0, 256, 3)))
    canvas = ImageDraw.Draw(picture)
    middle, width = 256 + draws.normal(0, 20), draws.uniform(70, 110)

    def ellipse(x: float, y: float, wide: float, high: float, colour: np.ndarray) -> None:
        box = [(x - wide) * scale, (y - high) * scale, (x + wide) * scale, (y + high) * scale]
        canvas.ellipse(box, fill=tuple(int(value) for value in np.clip(colour, 0, 255)))

    ellipse(middle, 340, width, 170, tone)
    ellipse(middle, 110, 55, 70, tone * 0.97)
    for sign in (-1, 1):
        ellipse(middle + sign * width / 2, 270, width * 0.42, width * 0.42, tone * 1.04)
        ellipse(middle + sign * width / 2, 275, width * 0.13, width * 0.13, tone * [0.75, 0.5, 0.5])
        ellipse(middle + sign * 22, 100, 9, 5, np.array([30, 20, 20]))
        ellipse(middle + sign * (width + 25), 330, 25, 140, tone * 0.95)
    ellipse(middle, 400, 5, 7, tone * 0.6)
    ellipse(middle, 140, 18, 6, np.array([160, 60, 60]))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(draws.uniform(1, 4) * scale)))
