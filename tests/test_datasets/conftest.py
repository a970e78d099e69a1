"""Small files to read: written by the tests themselves."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import videomac_mm  # noqa: F401  repairs OpenMMLab before anything else imports it
from videomac_mm.datasets import SyntheticVideo


@pytest.fixture
def write_video() -> Callable[..., Path]:
    """Write a generated video; AVI files in XVID, others in MPEG-4."""

    def write(path: Path, num_frames: int = 12, size=(48, 64), fps: int = 25) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        fourcc = cv2.VideoWriter_fourcc(*('XVID' if path.suffix == '.avi' else 'mp4v'))
        writer = cv2.VideoWriter(str(path), fourcc, fps, size[::-1])
        video = SyntheticVideo(0, max(num_frames, 1), size)
        for t in range(num_frames):
            writer.write(video.frame(t)[..., ::-1])
        writer.release()
        return path

    return write


@pytest.fixture
def write_frames() -> Callable[..., list[np.ndarray]]:
    """Write a folder of PNG files; the pictures are returned, (H, W, 3) RGB each."""

    def write(folder: Path, names: list[str], size=(48, 64)) -> list[np.ndarray]:
        folder.mkdir(parents=True, exist_ok=True)
        video = SyntheticVideo(0, max(len(names), 1), size)
        imgs = [video.frame(t) for t in range(len(names))]
        for name, img in zip(names, imgs):
            cv2.imwrite(str(folder / name), img[..., ::-1])
        return imgs

    return write
