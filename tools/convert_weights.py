"""Bring a checkpoint of other code to this package's names and layouts, or ours to others'.

In (`--source`): the result holds `backbone.*` and what there is of `neck.*` and `head.fc.*`, of
VideoMAC the online network, and its `target.*`. It loads as a whole into the algorithm
(`load_from`), and its backbone into any model that has the same one:

    backbone=dict(..., init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.'))

Out (`--source ours --target ...`): the backbone and a classifier `head.fc.*`; decoder and target
network stay behind. A DST that ends in .safetensors holds the backbone alone, without `backbone.`.
Unknown and missing keys are listed, and nothing is written.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from mmengine.runner import save_checkpoint
from torch import Tensor

from videomac_mm import __version__
from videomac_mm.weights import (
    check_complete,
    from_fcmae,
    from_mmaction,
    from_timm,
    from_videomac,
    from_videomae,
    read_checkpoint,
    to_mmaction,
    to_mmpretrain,
    to_timm,
    write_safetensors,
)

SOURCES: dict[str, Callable[[dict], dict]] = dict(
    videomac=from_videomac,
    videomae=from_videomae,
    fcmae=from_fcmae,
    timm=from_timm,
    mmaction=from_mmaction,
    ours=lambda state_dict: state_dict,
)
TARGETS: dict[str, Callable[[dict], dict]] = dict(
    ours=lambda weights: weights,
    mmpretrain=to_mmpretrain,
    mmaction=to_mmaction,
    timm=to_timm,
)
EXPORTED = ('backbone.', 'head.fc.')
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
        choices=list(SOURCES),
        default='videomac',
        help="the code that wrote it; mmpretrain's names are ours (default: %(default)s)",
    )
    parser.add_argument(
        '--target',
        choices=list(TARGETS),
        default='ours',
        help='whose names to write (default: %(default)s)',
    )
    parser.add_argument(
        '--drop',
        metavar='REGEX',
        help='leave out these keys, in our names; for norms that the target has not, such as '
        r"'backbone\.norm[0-2]\..*'. Mind that dropping VideoMAC's own, which feed the next "
        'stage, changes what the network computes',
    )
    return parser.parse_args()


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
    """Our names and layouts; DDP's `module.` is dropped.

    Raises:
        KeyError: listing unknown or missing keys.
    """
    weights = SOURCES[source](
        {key.removeprefix('module.'): value for key, value in state_dict.items()}
    )
    if source != 'ours':
        check_complete(weights, inline_norms=source == 'videomac')
    elif not any(key.startswith('backbone.') for key in weights):
        weights = {f'backbone.{key}': value for key, value in weights.items()}
    return weights


def export(weights: dict[str, Tensor], target: str) -> dict[str, Tensor]:
    """A backbone, and a classifier that is one linear layer, in the names of others.

    Raises:
        KeyError: listing keys that they have not, or that are missing.
    """
    exported = TARGETS[target](weights)
    check_complete(weights)
    return exported


def main() -> None:
    args = parse_args()
    checkpoint = read_checkpoint(args.src)
    online, target = find_networks(checkpoint)
    weights = convert(online, args.source)
    only_backbone = args.dst.suffix == '.safetensors'
    if args.source == 'videomac' and args.target == 'ours' and not only_backbone:
        if target is None:
            print('It holds one network, taken as the online one; the target becomes its copy.')
        follower = weights if target is None else convert(target, args.source)
        weights.update({f'target.{key}': value for key, value in follower.items()})

    meta = dict(converted_from=args.src.name, source=args.source, videomac_mm_version=__version__)
    if isinstance(checkpoint.get('epoch'), int):
        meta['epoch'] = checkpoint['epoch'] + 1  # epochs done
    wanted = 'backbone.' if only_backbone else EXPORTED if args.target != 'ours' else ''
    left_out = [key for key in weights if not key.startswith(wanted)]
    left_out += [key for key in weights if args.drop and re.fullmatch(args.drop, key)]
    weights = {key: value for key, value in weights.items() if key not in left_out}
    for part in sorted({key.split('.')[0] for key in weights}):
        tensors = [value for key, value in weights.items() if key.startswith(f'{part}.')]
        numbers = sum(tensor.numel() for tensor in tensors)
        print(f'{part:8} {len(tensors):4} tensors, {numbers / 1e6:.2f} M values')
    if left_out:
        print(f'left out: {", ".join(left_out)}')
    if args.target != 'ours':
        weights = export(weights, args.target)
    args.dst.parent.mkdir(parents=True, exist_ok=True)
    if only_backbone:
        weights = {key.removeprefix('backbone.'): value for key, value in weights.items()}
        write_safetensors(weights, args.dst, meta)
    else:
        save_checkpoint(dict(state_dict=weights, meta=meta), str(args.dst))
    print(f'written to {args.dst}')


if __name__ == '__main__':
    main()
