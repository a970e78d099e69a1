"""Write a small generated data set for fine-tuning: pictures, videos and label maps.

    python tools/prepare_synthetic.py data/synthetic

Things of four classes, each with a texture of its own, in any shape, place and size before any
background; for the configs named `…_synthetic-…`, in the layouts that mmpretrain, mmaction2 and
mmsegmentation read:

    images/{train,val}/{0,1,2,3}/00000.png                    one thing on each picture
    videos/{train,val}/00000.mp4, videos/{train,val}.txt      one thing; lines `00000.mp4 CLASS`
    segmentation/{images,annotations}/{train,val}/00000.png   three things; ids CLASS + 1, ground 0

The same command writes the same pictures; training and validation share none.
"""

import argparse
import math
from pathlib import Path

import mmcv
import numpy as np

from videomac_mm.datasets import SyntheticVideo
from videomac_mm.visualization import VideoWriter

LOOKS = dict(size=(112, 112), num_classes=4)
SPLITS = {'train': 0, 'val': 1_000_000}  # first seed, which decides everything drawn
NUMBERS = {'images': (2000, 400), 'videos': (400, 100), 'segmentation': (1000, 200)}


def parse_args() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument('out', type=Path, help='a new folder')
    parser.add_argument(
        '--share', type=float, default=1.0, help='of the usual numbers, in (0, 1] (default: 1)'
    )
    args = parser.parse_args()
    if not 0 < args.share <= 1:
        parser.error(f'--share must lie in (0, 1], got {args.share}')
    if args.out.exists():
        parser.error(f'{args.out} exists already; name a new folder, or remove it')
    return args


def write_picture(path: Path, picture: np.ndarray) -> None:
    mmcv.imwrite(mmcv.rgb2bgr(picture) if picture.ndim == 3 else picture, str(path))


def write_image(folder: Path, split: str, index: int) -> None:
    video = SyntheticVideo(SPLITS[split] + index, num_frames=1, num_objects=1, **LOOKS)
    write_picture(folder / split / str(video.labels[0]) / f'{index:05d}.png', video.frame(0))


def write_video(folder: Path, split: str, index: int) -> None:
    video = SyntheticVideo(SPLITS[split] + 100_000 + index, 24, num_objects=1, **LOOKS)
    name = f'{index:05d}.mp4'
    with VideoWriter(folder / split / name, fps=12) as writer:
        for t in range(len(video)):
            writer.write(video.frame(t))
    with (folder / f'{split}.txt').open('a') as lines:
        lines.write(f'{name} {video.labels[0]}\n')


def write_map(folder: Path, split: str, index: int) -> None:
    video = SyntheticVideo(SPLITS[split] + 200_000 + index, num_frames=1, num_objects=3, **LOOKS)
    ids = np.array([0, *(label + 1 for label in video.labels)], np.uint8)  # by object
    write_picture(folder / 'images' / split / f'{index:05d}.png', video.frame(0))
    write_picture(folder / 'annotations' / split / f'{index:05d}.png', ids[video.mask(0)])


def main() -> None:
    args = parse_args()
    for (task, numbers), write in zip(NUMBERS.items(), (write_image, write_video, write_map)):
        numbers = [math.ceil(args.share * number) for number in numbers]
        for split, number in zip(SPLITS, numbers):
            for index in range(number):
                write(args.out / task, split, index)
        print(f'{args.out / task}: {numbers[0]} for training, {numbers[1]} for validation')


if __name__ == '__main__':
    main()
