"""Frames upright, in the codec's own planes or in RGB."""

from collections.abc import Sequence

import cv2
import numpy as np

from .base import RawFrame

# Red's and blue's share of luma by FFmpeg's number of the colour space; swscale takes BT.601 for
# the rest.
LUMA_SHARES = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
FULL_RANGE = 2  # of RawFrame.color_range


class PlanarFrame:
    """A decoded frame as the codec stores it: luma and two planes of chroma, no colours yet.

    A crop is scaled plane by plane and only then turned into RGB, so that its cost is that of
    the output's size, not of the video's. Up to rounding that equals scaling the RGB picture,
    except that chroma is interpolated once, and that a crop at an odd pixel takes the whole
    chroma sample there (an error of up to half a sample at that border, in colour alone).

    Args:
        frame: three planes.
    """

    def __init__(self, frame: RawFrame) -> None:
        self.planes = [np.rot90(plane, frame.turns) for plane in frame.planes]
        self.shape = self.planes[0].shape
        full = frame.color_range == FULL_RANGE or frame.format.startswith('yuvj')
        self.to_rgb = rgb_matrix(frame.colorspace, full)

    def copy(self) -> 'PlanarFrame':
        return self  # nothing writes into it

    def crop_resize(
        self, box: Sequence[int], size: tuple[int, int], interpolation: int
    ) -> np.ndarray:
        """A part of the frame in another size: (H, W, 3) uint8 RGB.

        Args:
            box: left, top, right, bottom in pixels, the latter two outside.
            size: (W, H) in pixels.
            interpolation: of OpenCV.
        """
        height, width = self.shape
        scaled = []
        for plane in self.planes:
            step_x, step_y = round(width / plane.shape[1]), round(height / plane.shape[0])
            left, top = box[0] // step_x, box[1] // step_y
            right, bottom = -(-box[2] // step_x), -(-box[3] // step_y)
            part = plane[top:bottom, left:right]
            if part.strides[1] != 1:  # turned
                part = np.ascontiguousarray(part)
            scaled.append(cv2.resize(part, size, interpolation=interpolation))
        return cv2.transform(cv2.merge(scaled), self.to_rgb)


def rgb_matrix(colorspace: int, full_range: bool) -> np.ndarray:
    """From 8-bit Y, Cb, Cr to RGB: (3, 4), the last column a constant (ITU-T H.273)."""
    red, blue = LUMA_SHARES.get(colorspace, (0.299, 0.114))
    green = 1 - red - blue
    luma, chroma = (1, 1) if full_range else (255 / 219, 255 / 224)
    matrix = np.array(
        [
            [luma, 0, 2 * (1 - red)],
            [luma, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
            [luma, 2 * (1 - blue), 0],
        ]
    )
    matrix[:, 1:] *= chroma
    constant = matrix @ -np.array([0 if full_range else 16, 128, 128])
    return np.column_stack([matrix, constant])


def upright(frame: RawFrame) -> np.ndarray | PlanarFrame:
    """The frame as it is shown: (H, W, 3) uint8 RGB, or `PlanarFrame` of planes."""
    if len(frame.planes) > 1:
        return PlanarFrame(frame)
    picture = frame.planes[0]
    return np.ascontiguousarray(np.rot90(picture, frame.turns)) if frame.turns else picture
