"""Bring a checkpoint of other code to this package's names and layouts.

The result holds `backbone.*` and `neck.*`, of VideoMAC the online network, and its `target.*`. It
loads as a whole into the algorithm (`load_from`), and its backbone into any model that has the
same one:

    backbone=dict(..., init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.'))
"""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.runner import save_checkpoint
from torch import Tensor

from videomac_mm import __version__
from videomac_mm.weights import from_videomac, from_videomae

CONVERTERS: dict[str, Callable[[dict], dict]] = dict(videomac=from_videomac, videomae=from_videomae)
# Where a checkpoint keeps its networks, the first that is there. The official VideoMAC code
# saves both, each with and without its DDP wrapper; others save one.
ONLINE = ('online_without_ddp', 'model_online', 'model', 'state_dict')
TARGET = ('target_without_ddp', 'model_target')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', type=Path, help='checkpoint to read')
    parser.add_argument('dst', type=Path, help='checkpoint to write')
    parser.add_argument(
        '--source',
        choices=sorted(CONVERTERS),
        default='videomac',
        help='the code that wrote it (default: %(default)s)',
    )
    return parser.parse_args()


def load(path: Path) -> dict:
    """Read a checkpoint of tensors and plain values; whatever holds code is refused.

    Raises:
        ValueError: for such a file, naming what it holds.
    """
    # The official code saves its command line along with the weights.
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as err:
        reason = str(err).replace('\n', ' ')
        raise ValueError(
            f'{path} is refused: a checkpoint may hold tensors and plain values, and reading '
            f'this file would take code: {reason}'
        ) from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} should hold a dict, got {type(checkpoint).__name__}')
    return checkpoint


def find_networks(checkpoint: dict) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The state dicts of the online and, where there is one, of the target network.

    Raises:
        ValueError: if there is none; names the keys found.
    """
    online = next((checkpoint[key] for key in ONLINE if key in checkpoint), checkpoint)
    target = next((checkpoint[key] for key in TARGET if key in checkpoint), None)
    if not online or not all(isinstance(value, Tensor) for value in online.values()):
        raise ValueError(
            f'no weights found: expected a state dict or one under {", ".join(ONLINE)}, '
            f'got the keys {list(checkpoint)}'
        )
    return online, target


def convert(state_dict: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Our names and layouts; DDP's `module.` is dropped."""
    return CONVERTERS[source](
        {key.removeprefix('module.'): value for key, value in state_dict.items()}
    )


def main() -> None:
    args = parse_args()
    checkpoint = load(args.src)
    online, target = find_networks(checkpoint)
    weights = convert(online, args.source)
    if args.source == 'videomac':
        if target is None:
            print('It holds one network, taken as the online one; the target becomes its copy.')
        follower = weights if target is None else convert(target, args.source)
        weights.update({f'target.{key}': value for key, value in follower.items()})

    meta = dict(converted_from=args.src.name, source=args.source, videomac_mm_version=__version__)
    if isinstance(checkpoint.get('epoch'), int):
        meta['epoch'] = checkpoint['epoch'] + 1  # epochs done
    save_checkpoint(dict(state_dict=weights, meta=meta), str(args.dst))
    for part in ('backbone', 'neck', 'target'):
        tensors = [value for key, value in weights.items() if key.startswith(f'{part}.')]
        numbers = sum(tensor.numel() for tensor in tensors)
        print(f'{part:8} {len(tensors):4} tensors, {numbers / 1e6:.2f} M values')
    print(f'written to {args.dst}')


if __name__ == '__main__':
    main()
