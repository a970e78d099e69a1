"""Generated videos with known motion, masks and key-points."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset

from videomac_mm.datasets.places import PlacedItems
from videomac_mm.registry import DATASETS, TRANSFORMS


class SyntheticVideo:
    """Textured shapes that move over a drifting background.

    Everything is a formula of place and time, evaluated per pixel: any frame at
    any size, in any order, without stored pictures; motion below one pixel is
    exact. Shapes (discs, rectangles, polygons, stars; 17 to 30 % of the shorter
    side in radius) and textures (plane waves and stripes, longer than a patch
    of 32 pixels at 224) are large, so that hidden patches can be told from
    their surroundings. Objects travel 0.5 to 3 % of the shorter side per frame
    and bounce off the border, turn up to 3 degrees per frame and breathe by
    15 %; those with a higher id hide those with a lower one.

    A pixel (row i, column j) has its centre at x = j, y = i. It belongs to an
    object in :meth:`mask` exactly if the object covers more than half of it in
    :meth:`frame`.

    Args:
        seed: decides everything drawn.
        num_frames: length. Defaults to 32.
        size: (H, W) in pixels. Defaults to (64, 64).
        num_objects: 0 to 255. Defaults to 3.
        num_classes: how many textures there are, the same for every seed, one of which each
            object has: classes to be learned. Defaults to None: every object has its own.

    Raises:
        ValueError: if an argument is out of its range.
    """

    num_keypoints = 5  # of each object: its centre and four around it

    def __init__(
        self,
        seed: int,
        num_frames: int = 32,
        size: tuple[int, int] = (64, 64),
        num_objects: int = 3,
        num_classes: int | None = None,
    ) -> None:
        if num_frames < 1:
            raise ValueError(f'num_frames must be at least 1, got {num_frames}')
        if num_classes is not None and num_classes < 1:
            raise ValueError(f'num_classes must be at least 1, got {num_classes}')
        if len(size) != 2 or min(size) < 8:
            raise ValueError(f'size must be (H, W) of at least 8 pixels, got {size}')
        if not 0 <= num_objects <= 255:
            raise ValueError(f'num_objects must lie in [0, 255], got {num_objects}')
        self.num_frames = num_frames
        self.size = height, width = tuple(size)
        rng = np.random.default_rng(seed)
        short = min(size)
        self._ground = _Texture(rng, wavelengths=(0.3 * short, short))
        self._drift = _velocity(rng, (0.002 * short, 0.015 * short))
        self._objects = [_Sprite(rng, height, width) for _ in range(num_objects)]
        self.labels: list[int] = []  # the class of each object
        if num_classes is not None:
            self.labels = rng.integers(num_classes, size=num_objects).tolist()
            for sprite, label in zip(self._objects, self.labels):
                sprite.texture = _Texture(np.random.default_rng(label), _Sprite.wavelengths)

    def __len__(self) -> int:
        return self.num_frames

    def frame(self, t: int) -> np.ndarray:
        """The picture at time ``t``: (H, W, 3) uint8 RGB, edges anti-aliased.

        Raises:
            IndexError: if ``t`` is outside [0, num_frames); so do the others.
        """
        x, y = self._grid(t)
        canvas = self._ground(x - self._drift[0] * t, y - self._drift[1] * t)
        for sprite in self._objects:
            region, u, v, distance = sprite.locate(x, y, t)
            cover = np.clip(0.5 - distance, 0, 1)[..., None]
            canvas[region] += cover * (sprite.texture(u, v) - canvas[region])
        return (canvas + 0.5).astype(np.uint8)

    def mask(self, t: int) -> np.ndarray:
        """Which object is seen where: (H, W) uint8, 0 background, n-th object n."""
        x, y = self._grid(t)
        ids = np.zeros(self.size, np.uint8)
        for number, sprite in enumerate(self._objects, start=1):
            region, _, _, distance = sprite.locate(x, y, t)
            ids[region][distance < 0] = number
        return ids

    def keypoints(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Points that move with their object.

        Returns:
            ``(N, K, 2)`` float x, y in pixels, and ``(N, K)`` bool: inside the
            frame and not hidden by another object.
        """
        ids = self.mask(t)
        points = np.array([sprite.keypoints(t) for sprite in self._objects])
        points = points.reshape(-1, self.num_keypoints, 2)
        height, width = self.size
        x, y = np.moveaxis(np.rint(points).astype(int), -1, 0)  # each (N, K)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        seen = ids[y.clip(0, height - 1), x.clip(0, width - 1)]
        return points, inside & (seen == np.arange(1, len(points) + 1)[:, None])

    def _grid(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """x (1, W) and y (H, 1) of the pixel centres, float32."""
        if not 0 <= t < self.num_frames:
            raise IndexError(f't must lie in [0, {self.num_frames}), got {t}')
        height, width = self.size
        x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
        return x[None], y[:, None]


class _Texture:
    """Colour as a function of place: three plane waves, the first maybe stripes."""

    def __init__(
        self,
        rng: np.random.Generator,
        wavelengths: tuple[float, float],
        contrast: float = 90,
    ) -> None:
        """``wavelengths``: range in the unit of place; ``contrast``: in [0, 127]."""
        numbers = 2 * np.pi / rng.uniform(*wavelengths, 3)  # radians per unit
        angles = rng.uniform(0, np.pi, 3)
        waves = numbers * np.stack([np.cos(angles), np.sin(angles)])
        self.waves = waves.astype(np.float32)  # (2, 3)
        self.phases = rng.uniform(0, 2 * np.pi, 3).astype(np.float32)
        self.stripes = rng.random() < 0.4
        # The amplitudes (wave, channel) add up to `contrast` at most, which keeps
        # every colour within [0, 255].
        shares = contrast * np.array([[0.6], [0.25], [0.15]])
        self.colours = (rng.uniform(-1, 1, (3, 3)) * shares).astype(np.float32)
        self.base = rng.uniform(contrast, 255 - contrast, 3).astype(np.float32)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Colours (H, W, 3) float32 in [0, 255] at places that broadcast to (H, W)."""
        values = np.cos(x[..., None] * self.waves[0] + (y[..., None] * self.waves[1] + self.phases))
        if self.stripes:
            values[..., 0] = np.clip(4 * values[..., 0], -1, 1)
        return values @ self.colours + self.base


class _Sprite:
    """One object: a shape of radius 1 in its own coordinates u, v, and its motion."""

    wavelengths = (0.7, 2)  # of its texture, in radii

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        short = min(height, width)
        self.shape = rng.choice(['disc', 'rectangle', 'polygon', 'star'])
        self.aspect = rng.uniform(0.5, 1)  # of the rectangle
        self.corners = int(rng.integers(3, 7) if self.shape == 'polygon' else rng.integers(4, 7))
        self.texture = _Texture(rng, self.wavelengths)

        self.low = 0.15 * np.array([width, height])  # the centre stays in the middle
        self.span = 0.7 * np.array([width, height])
        self.start = rng.uniform(0, 2, 2) * self.span
        self.velocity = _velocity(rng, (0.005 * short, 0.03 * short))
        self.angle, self.turn = rng.uniform(0, 2 * np.pi), rng.uniform(-0.05, 0.05)
        self.radius = rng.uniform(0.17, 0.3) * short
        self.period, self.phase = rng.uniform(20, 60), rng.uniform(0, 2 * np.pi)

    def pose(self, t: int) -> tuple[np.ndarray, float, float]:
        """Centre (2,) x, y in pixels, angle in radians, pixels per unit of u, v."""
        way = (self.start + self.velocity * t) % (2 * self.span)
        centre = self.low + self.span - np.abs(way - self.span)  # there and back
        breath = np.sin(2 * np.pi * t / self.period + self.phase)
        return centre, self.angle + self.turn * t, self.radius * (1 + 0.15 * breath)

    def locate(
        self, x: np.ndarray, y: np.ndarray, t: int
    ) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray, np.ndarray]:
        """Where the object may be seen at time ``t``.

        Returns:
            Slices of rows and columns; there, u and v of each pixel, and its
            distance to the outline in pixels, negative inside; all (h, w).
        """
        centre, angle, scale = self.pose(t)
        left, top = np.floor(centre - scale).astype(int).clip(0)
        right, bottom = np.ceil(centre + scale).astype(int) + 1
        region = slice(top, bottom), slice(left, right)
        x = (x[:, region[1]] - np.float32(centre[0])) / np.float32(scale)
        y = (y[region[0]] - np.float32(centre[1])) / np.float32(scale)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = cos * x + sin * y, cos * y - sin * x
        return region, u, v, self.distance(u, v) * np.float32(scale)

    def distance(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Distance to the outline, negative inside; near corners a lower bound."""
        if self.shape == 'rectangle':
            half_diagonal = math.hypot(1, self.aspect)
            return np.maximum(
                np.abs(u) - 1 / half_diagonal, np.abs(v) - self.aspect / half_diagonal
            )
        radius = np.hypot(u, v)
        if self.shape == 'disc':
            return radius - 1
        # Fold the plane into half a corner: there the outline is one line, from the
        # tip (1, 0) to the valley (star) or to the middle of the edge (polygon).
        half = math.pi / self.corners
        depth = 0.5 if self.shape == 'star' else math.cos(half)
        folded = np.abs((np.arctan2(v, u) + half) % (2 * half) - half)
        # The line lies `reach` away from the centre, in the direction `slope`.
        slope = math.atan2(1 - depth * math.cos(half), depth * math.sin(half))
        reach = math.cos(slope)
        return radius * np.cos(folded - slope) - reach

    def keypoints(self, t: int) -> np.ndarray:
        """(5, 2) x, y in pixels: the centre and a cross inside the outline."""
        clearance = -self.distance(np.float32(0), np.float32(0))
        arm = 0.7 * clearance
        local = np.array([[0, 0], [arm, 0], [0, arm], [-arm, 0], [0, -arm]])
        centre, angle, scale = self.pose(t)
        cos, sin = np.cos(angle), np.sin(angle)
        return centre + scale * local @ np.array([[cos, sin], [-sin, cos]])


def _velocity(rng: np.random.Generator, speeds: tuple[float, float]) -> np.ndarray:
    """(2,) in a random direction, its length within ``speeds``."""
    angle = rng.uniform(0, 2 * np.pi)
    return rng.uniform(*speeds) * np.array([np.cos(angle), np.sin(angle)])


@TRANSFORMS.register_module()
class RenderFrames(BaseTransform):
    """Draw the chosen frames of a :class:`SyntheticVideo`.

    Required keys: ``video``, ``frame_inds``. Added keys: ``imgs`` (list of
    (H, W, 3) uint8 RGB), ``img_shape``, ``original_shape``.
    """

    def transform(self, results: dict) -> dict:
        results['imgs'] = [results['video'].frame(t) for t in results['frame_inds']]
        results['img_shape'] = results['original_shape'] = results['video'].size
        return results


@DATASETS.register_module()
class SyntheticVideoDataset(PlacedItems, BaseDataset):
    """Generated videos; needs no files.

    The pipeline starts from ``video`` (a :class:`SyntheticVideo`) and
    ``total_frames``: SampleFramePair or SampleClips → RenderFrames → … as for files.

    Args:
        num_videos: length of the data set.
        num_frames, size, num_objects: of each :class:`SyntheticVideo`.
            Default to 32, (64, 64), 3.
        seed: item i is the video of seed ``seed + i``. Defaults to 0.
        pipeline: transforms. Defaults to none.
        **kwargs: of ``BaseDataset``.

    Raises:
        ValueError: if ``num_videos`` is below 1; else as SyntheticVideo.
    """

    def __init__(
        self,
        num_videos: int,
        num_frames: int = 32,
        size: tuple[int, int] = (64, 64),
        num_objects: int = 3,
        seed: int = 0,
        pipeline: Sequence[dict | Callable] = (),
        **kwargs,
    ) -> None:
        if num_videos < 1:
            raise ValueError(f'num_videos must be at least 1, got {num_videos}')
        self.num_videos = num_videos
        self.seed = seed
        self.video_args = dict(num_frames=num_frames, size=tuple(size), num_objects=num_objects)
        SyntheticVideo(seed, **self.video_args)  # for its errors, here and now
        super().__init__(pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        return [dict(seed=self.seed + i) for i in range(self.num_videos)]

    def prepare_data(self, idx: int) -> dict | None:
        info = self.get_data_info(idx)
        video = SyntheticVideo(info['seed'], **self.video_args)
        info.update(video=video, total_frames=len(video), modality='RGB', start_index=0)
        return self.pipeline(info)
