"""Measure what this package is for: pre-training steps, and clips out of videos.

    python tools/benchmark.py step --config CONFIG     time and memory of a step, three ways
    python tools/benchmark.py encoder --config CONFIG  time and memory of an encoder, three ways
    python tools/benchmark.py data --config CONFIG     clips per second, two ways
    python tools/benchmark.py propagation              labels of a frame, two ways
    python tools/benchmark.py end-to-end --config CONFIG  from files to weights, and its parts
    python tools/benchmark.py scale --config CONFIG    several processes against one

Times are medians; what is compared is measured in turns, so that a drift of the machine
meets all alike. Every sample is kept in the JSON.
"""

import argparse
import ctypes
import itertools
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.utils.flop_counter import FlopCounterMode

from videomac_mm.models import SparseConvNeXt, SparseResNet, VideoMAC, VideoVisionTransformer
from videomac_mm.models.gathered_batch_norm import GatheredBatchNorm1d
from videomac_mm.models.label_propagation.context import ContextFrames, Window
from videomac_mm.models.label_propagation.dense import propagate_densely
from videomac_mm.registry import DATASETS, MODELS
from videomac_mm.sparse import VisiblePatches, set_backend
from videomac_mm.sparse.masked_dense import masked_dense

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
VARIANTS = ('sparse', 'masked_dense', 'mmpretrain_sparse')
MORE_VARIANTS = ('sparse_torch', 'spconv', 'sparse_compiled', 'masked_dense_compiled')
PAPER_PAIRS = 100 * 94_000  # epochs, frames of YouTube-VOS that have a partner
ENCODER_VARIANTS = ('masked', 'all_visible', 'full')
TOLERANCE = 1e-4  # of losses and features, relative, and of labels, in float32
FORMS = dict(
    dino=dict(
        context=dict(num_frames=7),
        window='square',
        topk=5,
        temperature=0.1,
        keep_ties=True,
    ),
    crw=dict(
        context=dict(num_frames=20, window_on_first=False),
        window='disc',
        topk=10,
        temperature=0.05,
        keep_ties=False,
    ),
)

STEP_HELP = """\
For configs of VideoMAC. A step is `model.loss(inputs, mask=mask)`, its sum and the backward
pass: the online network forward and backward, the target forward. Optimiser and EMA are timed
apart. Inputs are random; all variants get the same ones, and the same masks.

sparse             the model of the config
masked_dense       the same weights computed at every site, hidden sites zeroed where a layer
                   looks across sites; its losses must agree with those of `sparse`, or
                   nothing is reported
mmpretrain_sparse  mmpretrain's SparseConvNeXt or SparseResNet as the backbone, masked-dense too

and, if asked for with --variants:

sparse_torch           without the kernels of this package (backend='torch')
spconv                 with the spconv library (backend='spconv')
sparse_compiled        as `sparse`, the whole of `model.loss` under torch.compile, static shapes
masked_dense_compiled  as `masked_dense`, likewise

The operations of the matrix products and convs of the first variant's step are counted (those of
kernels of this package are not), and set against what a product of 4096 x 4096 matrices reaches
here (2048 on CPU).

Memory is the growth of the peak during one step, the new gradients included. On CUDA: of
torch's allocator. On CPU: of the resident set (VmHWM after the step less VmRSS right before it,
/proc/self/status), each variant in a fresh process of its own, after a tiny step that loads
the libraries.
"""

ENCODER_HELP = """\
For all configs of pre-training. A step is the backbone alone, forward and backward, in training
mode; the loss is the mean magnitude of its features. Inputs are random clips, or frames where
the encoder takes frames (VideoMAC); the config's mask generator draws the mask.

masked             backbone(x, mask): only what is visible is computed
all_visible        the same with a mask that hides nothing: the same kernels on everything, so that
                   the share of `masked` in it is what masking alone saves
full               backbone(x): the same network on everything, in plain operations of torch; the
                   features of `all_visible` must agree with it, or nothing is reported

Memory as in `step`.
"""

DATA_HELP = """\
Clips (pairs of frames are clips of two) per second of the training pipeline of a config, after
collation, for each number of workers (0 = in process); several crops of the same frames
(ForEachClip's repeats) count once. For video files the same data set also runs the plain pipeline
of mmaction2: DecordInit, SampleFrames, DecordDecode, then the config's own crops. Only videos that
this package could read take part: decord ends the process on some damaged files.
"""

PROPAGATION_HELP = """\
Milliseconds for the labels of one frame, from random features and with a full queue, in DINO's
form (8 frames, square window, top 5) and in CRW's (21 frames, the first one without a window,
top 10).

windowed           what LabelPropagator runs
dense              the matrix of all pairs of cells, then masked, as the references do; its labels
                   must agree with those of `windowed`, or nothing is reported

The network of the config takes its time once a frame, apart. Memory as in `step`.
"""

END_TO_END_HELP = """\
For all configs of pre-training: whole iterations, from the files of the data set to the moved
weights, for each number of workers (0 = in process). A window begins once the batches that were
waiting are used up.

waiting            for the next batch of the config's data loader
preprocessing      the copy to the device, and the config's normalisation
step               losses and backward
optimizer          of the config
ema                the target's following, where there is a target

On CUDA each part ends in a synchronisation. Videos are chosen as in `data`; of clips per second
every crop counts. Waiting threads of OpenMP sleep, as tools/train.py has it.
"""

SCALE_HELP = """\
For all configs of pre-training but CMAE-V's, whose processes wait for each other in the middle
of a step: the same work per process in one process and in several ones of this machine (NCCL, or
gloo on CPU), on random inputs. A step is forward, backward, optimiser and EMA.

alone              one process, the others idle
unsynced           all processes at once, each on its own: what they take from each other
synced             with DistributedDataParallel, as in training
all_reduce         the gradients' exchange by itself, in DDP's buckets
optimizer          the config's, alone; `sharded` is the same as ZeroRedundancyOptimizer (ZeRO-1),
                   the weights' exchange included

Efficiency is the time alone over the time synced. The estimate for other machines takes
2 (N - 1) / N * bytes / bandwidth for a ring's exchange, latency left out, and a step of --step-ms:
`hidden` is the best case, an exchange wholly behind the computation, `exposed` the worst.
"""


# ----------------------------------------------------------------------------- common


def parse_args() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest='command', required=True)
    step = commands.add_parser('step', description=STEP_HELP, formatter_class=raw)
    encoder = commands.add_parser('encoder', description=ENCODER_HELP, formatter_class=raw)
    data = commands.add_parser('data', description=DATA_HELP, formatter_class=raw)
    propagation = commands.add_parser(
        'propagation', description=PROPAGATION_HELP, formatter_class=raw
    )
    end_to_end = commands.add_parser('end-to-end', description=END_TO_END_HELP, formatter_class=raw)
    scale = commands.add_parser('scale', description=SCALE_HELP, formatter_class=raw)
    for command in (step, encoder, data, end_to_end, scale):
        command.add_argument(
            '--config', required=True, help='config file, or the name of one below configs/'
        )
        command.add_argument('--batch-size', type=positive, default=8)
    propagation.add_argument('--config', default='davis2017-dino_videomac-convnextv2-tiny')
    propagation.add_argument('--grid', type=positive, nargs=2, default=[60, 107], help='cells')
    propagation.add_argument('--channels', type=positive, default=384)
    propagation.add_argument('--radius', type=positive, default=12, help='cells')
    propagation.add_argument('--forms', nargs='+', choices=list(FORMS), default=list(FORMS))
    for command in (step, encoder, data, propagation, end_to_end, scale):
        command.add_argument('--threads', type=positive, help="torch's threads, default: its own")
        command.add_argument('--json', type=Path, help='file for the results')
        command.add_argument('--plot', type=Path, help='picture of the medians and all samples')
        command.add_argument(
            '--cfg-options', nargs='+', action=DictAction, help='overrides as key=value'
        )
    step.add_argument('--size', type=positive, default=224, help='pixels')
    step.add_argument(
        '--variants', nargs='+', choices=VARIANTS + MORE_VARIANTS, default=list(VARIANTS)
    )
    for command in (encoder, scale):
        command.add_argument('--size', type=positive, help="pixels, default: the config's Resize")
        command.add_argument('--num-frames', type=positive, help="default: the config's clip_len")
    for command in (step, encoder, end_to_end, scale):
        command.add_argument(
            '--amp',
            nargs='?',
            const='auto',
            choices=['auto', 'float16', 'bfloat16'],
            help='mixed precision; alone, float16 on GPU, bfloat16 on CPU',
        )
    for command in (step, encoder, propagation, end_to_end, scale):
        command.add_argument('--repeats', type=positive, default=5)
        command.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    for command in (data, end_to_end):
        command.add_argument('--data-root', help="the data set's folder, in place of the config's")
        command.add_argument('--workers', type=int, nargs='+', default=[0, 2])
        command.add_argument(
            '--num-videos', type=positive, default=100, help='items, evenly spread'
        )
    data.add_argument('--seconds', type=float, default=4.0, help='length of a window')
    data.add_argument('--windows', type=positive, default=3)
    end_to_end.add_argument('--iterations', type=positive, default=10, help='of a window')
    scale.set_defaults(threads=1)
    scale.add_argument('--processes', type=positive, default=2)
    scale.add_argument('--gpus', type=positive, nargs='+', default=[8, 64], help='to estimate')
    scale.add_argument(
        '--bandwidth',
        type=float,
        nargs='+',
        help="GB/s of each GPU's link: one, or one for each of --gpus; default: as measured here",
    )
    scale.add_argument('--step-ms', type=float, help='of a GPU; default: as measured here')
    return parser.parse_args()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
    return number


def load_config(args: argparse.Namespace) -> Config:
    """Read a config by its path, or by its name wherever it lies below configs/."""
    path = Path(args.config)
    if not path.is_file():
        found = sorted(CONFIGS.rglob(f'{path.name.removesuffix(".py")}.py'))
        if path.parent != Path('.') or len(found) != 1:
            raise FileNotFoundError(
                f'no config {args.config}: expected a file, or the name of exactly one below '
                f'{CONFIGS}, found {len(found)}'
            )
        (path,) = found
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(args.cfg_options or {})
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    MMLogger.get_instance('benchmark', log_level='WARNING')
    if args.threads:
        torch.set_num_threads(args.threads)
    return cfg


def new_process(initializer: Callable | None = None, *args) -> ProcessPoolExecutor:
    """One process that has done nothing but import libraries, and call ``initializer(*args)``."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmengine.runner', 'videomac_mm.models', 'mmaction.datasets'])
    return ProcessPoolExecutor(1, mp_context=context, initializer=initializer, initargs=args)


def in_new_process(function: Callable, *args) -> Any:
    """Call a function of this file in a process of its own.

    Raises:
        BrokenProcessPool: if the process dies.
    """
    with new_process() as process:
        return process.submit(function, *args).result()


def describe(args: argparse.Namespace, device: torch.device) -> dict:
    """What was run, on what."""
    return dict(
        config=args.config,
        cfg_options=args.cfg_options,
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_model(),
        threads=torch.get_num_threads(),
        cpus=os.cpu_count(),
        torch=torch.__version__,
        date=time.strftime('%Y-%m-%d %H:%M'),
    )


def cpu_model() -> str:
    info = Path('/proc/cpuinfo')
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def finish(report: dict, path: Path | None, plot_path: Path | None = None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + '\n')
        print(f'written to {path}')
    if plot_path is not None:
        plot_path.parent.mkdir(parents=True, exist_ok=True)
        plot(report, plot_path)
        print(f'written to {plot_path}')


def plot(report: dict, path: Path) -> None:
    """Bars for the medians of all samples in a report, dots for the samples."""
    from matplotlib.figure import Figure

    bars = dict(named_samples(report))
    units = list(dict.fromkeys(unit for unit, _ in bars))
    figure = Figure(figsize=(8, 1 + 0.4 * len(bars)), layout='constrained')
    axes = figure.subplots(len(units), squeeze=False)[:, 0]
    figure.suptitle(f'{report["config"]}\n{report["device"]}', fontsize='small')
    for ax, unit in zip(axes, units):
        names = [name for other, name in bars if other == unit]
        for name in names:
            values = bars[unit, name]
            ax.barh(name, median(values), color='tab:blue', alpha=0.6)
            ax.plot(values, [name] * len(values), '.', color='black')
        ax.invert_yaxis()
        ax.set_xlabel(unit.replace('_per_', ' / '))
    figure.savefig(path)


def named_samples(report: dict, unit: str = '', name: str = '') -> Iterator[tuple]:
    """Each list of samples under a key ``samples_UNIT``: ((unit, name), values)."""
    for key, value in report.items():
        inner = key.removeprefix('samples_') if key.startswith('samples_') else unit
        path = name if inner != unit else f'{name} {key}'.strip()
        if isinstance(value, dict):
            yield from named_samples(value, inner, path)
        elif unit:
            yield (unit, path), value


def ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base is not None else None


def text(value: float | None, unit: str = '') -> str:
    return '-' if value is None else f'{value:.2f}{unit}'


# ------------------------------------------------------------------------------- step


def build_model(cfg: Config) -> nn.Module:
    """The initialised model of a config of pre-training."""
    torch.manual_seed(0)
    # Where a runner puts the preprocessor; it has no part in a step here.
    model = MODELS.build({'data_preprocessor': cfg.get('data_preprocessor'), **cfg.model})
    if not hasattr(model, 'mask_generator'):
        raise ValueError(
            f'expected a config of pre-training, got one whose model is {type(model).__name__}, '
            'which draws no masks'
        )
    model.init_weights()
    return model


def build_variant(cfg: Config, variant: str, device: torch.device) -> nn.Module | None:
    """The model of a config as one of the variants; None if there is no such one."""
    model = build_model(cfg)
    if not isinstance(model, VideoMAC):
        raise ValueError(
            'step compares the ConvNets of VideoMAC with their masked-dense forms; '
            f'{type(model).__name__} has none: run `encoder` with this config'
        )
    if variant == 'mmpretrain_sparse':
        backbone = mmpretrain_counterpart(model.backbone)
        if backbone is None:
            return None
        model.backbone = backbone
        model.target = type(model.target)(backbone=model.backbone, neck=model.neck)
        for network in (model.backbone, model.target.backbone):
            network.register_forward_pre_hook(set_active)
    elif variant in ('sparse_torch', 'spconv'):
        set_backend(model, variant.removeprefix('sparse_'))
    return model.to(device).train()


def mmpretrain_counterpart(backbone: nn.Module) -> nn.Module | None:
    """mmpretrain's own sparse network that is closest, with the same weights where they fit."""
    if isinstance(backbone, SparseConvNeXt):
        block = backbone.stages[0][0]
        cfg = dict(
            type='mmpretrain.SparseConvNeXt',
            arch=dict(depths=backbone.depths, channels=backbone.channels),
            stem_patch_size=backbone.downsample_layers[0][0].kernel_size[0],
            linear_pw_conv=block.linear_pw_conv,
            use_grn=block.grn is not None,
            layer_scale_init_value=0.0 if block.gamma is None else 1e-6,
            gap_before_output=False,
        )
    elif isinstance(backbone, SparseResNet):
        # Its default, synchronised batch norm, refuses CPUs.
        norm_cfg = dict(type='mmpretrain.SparseBatchNorm2d')
        cfg = dict(type='mmpretrain.SparseResNet', norm_cfg=norm_cfg)
        for name in ('depth', 'stem_channels', 'base_channels', 'num_stages', 'strides'):
            cfg[name] = getattr(backbone, name)
    else:
        return None
    counterpart = MODELS.build(dict(cfg, out_indices=list(backbone.out_indices)))
    counterpart.init_weights()
    if not is_other_network(backbone):
        counterpart.load_state_dict(backbone.state_dict(), strict=False)
    return counterpart


def is_other_network(backbone: nn.Module) -> bool:
    return getattr(backbone, 'variant', 'standard') != 'standard'


def counterpart_note(model: nn.Module | None, backbone: nn.Module) -> str:
    """What mmpretrain's network has in common with the one of the config."""
    if model is None:
        return f'mmpretrain has no sparse counterpart of {type(backbone).__name__}'
    name = f"mmpretrain's {type(model.backbone).__name__}"
    if is_other_network(backbone):
        return (
            f'{name} of the same depth is another network: 7x7 stem, max-pool, batch norm and '
            f'ReLU, where variant={backbone.variant!r} has a 4x4 patch stem, LayerNorm and GELU'
        )
    left_out = set(backbone.state_dict()) - set(model.backbone.state_dict())
    if left_out:
        layers = sorted({key.rpartition('.')[0] for key in left_out})
        return f'{name} with the same weights; it has no {", ".join(layers)}'
    return f'{name} with the same weights'


def set_active(_, args: tuple[Tensor, VisiblePatches | Tensor]) -> Tensor:
    """Tell mmpretrain's layers the mask, and hide pixels as its SparK does."""
    from mmpretrain.models.utils import SparseHelper

    images, mask = args[0], VisiblePatches.of(args[1]).mask
    SparseHelper._cur_active = active = ~mask[:, None]
    factor = images.shape[-1] // mask.shape[-1]
    return images * active.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


@contextmanager
def densely(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Let a model compute its masked backbones as masked-dense networks."""
    with ExitStack() as stack:
        for network in (model.backbone, model.target.backbone):
            stack.enter_context(masked_dense(network, mask))
            drop_mask = network.register_forward_pre_hook(lambda _, args: args[:1])
            stack.callback(drop_mask.remove)
        yield


def autocast(device: torch.device, amp: str | None) -> AbstractContextManager:
    """Mixed precision as ``--amp`` has it."""
    half = amp == 'float16' or (amp == 'auto' and device.type == 'cuda')
    dtype = torch.float16 if half else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=bool(amp))


class Step:
    """The pre-training step of one variant on one batch.

    Args:
        model: as `build_variant` returns it.
        variant: one of `VARIANTS` or `MORE_VARIANTS`.
        batch_size, num_frames, size: of the inputs: clips, frames of each, pixels.
        amp: compute under `autocast`; as on the command line.
    """

    def __init__(
        self,
        model: nn.Module,
        variant: str,
        batch_size: int,
        size: int,
        amp: str | None = None,
        num_frames: int = 2,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(batch_size, 1, 3, num_frames, size, size, generator=generator)
        self.device = next(model.parameters()).device
        self.model, self.variant, self.amp = model, variant, amp
        self.inputs = inputs.to(self.device)
        # What the encoder gets: clips, or the first frame of each.
        self.encoded = self.inputs[:, 0] if tubelet_size(model) else self.inputs[:, 0, :, 0]
        # A plain mask, so that every step derives the geometry anew, as training does.
        self.mask = model.mask_generator(self.encoded, generator).mask
        self.compiled: Callable | None = None
        self.held = ExitStack()  # for as long as this step lives

    def prepared(self) -> AbstractContextManager:
        """Around the whole step: as masked-dense, backward must run inside too."""
        self.model.zero_grad(set_to_none=True)
        if self.variant == 'masked_dense':
            return densely(self.model, self.mask)
        if self.variant == 'masked_dense_compiled' and self.compiled is None:
            self.held.enter_context(densely(self.model, self.mask))  # what is compiled must stay
        return nullcontext()

    def run(self) -> dict[str, Tensor]:
        with autocast(self.device, self.amp):
            losses = self.forward()
        sum(losses.values()).backward()
        return losses

    def forward(self) -> dict[str, Tensor]:
        if not self.variant.endswith('_compiled'):
            return self.model.loss(self.inputs, mask=self.mask)
        if self.compiled is None:
            self.compiled = torch.compile(self.model.loss, dynamic=False)
        return self.compiled(self.inputs, mask=self.mask)

    def milliseconds(self) -> float:
        with self.prepared():
            return milliseconds(self.run, self.device)

    def losses(self) -> dict[str, float]:
        """The losses in float32, whatever ``amp`` says."""
        torch.manual_seed(0)  # for drop path
        amp, self.amp = self.amp, None
        with self.prepared(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            losses = self.run()
        self.amp = amp
        return {name: loss.item() for name, loss in losses.items()}

    def peak_mb(self) -> float:
        """Growth of the peak memory during the step, in MiB."""
        with self.prepared():
            before = reset_peak(self.device)
            self.run()
            return (peak(self.device) - before) / 2**20

    def tiny(self) -> 'Step':
        """The same on inputs that are as small as they can be."""
        generator = self.model.mask_generator
        shares = generator.mask_ratio, 1 - generator.mask_ratio
        # the smallest grid with a visible and a hidden patch
        side = next(n for n in itertools.count(2) if all(int(n * n * share) for share in shares))
        num_frames = tubelet_size(self.model) or self.inputs.shape[3]
        size = side * generator.patch_size
        return type(self)(self.model, self.variant, 2, size, self.amp, num_frames)


def tubelet_size(model: nn.Module) -> int | None:
    """Frames of a token; None if the encoder takes single frames."""
    return getattr(model.mask_generator, 'tubelet_size', None)


def milliseconds(action: Callable, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def in_turns(clocks: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Samples of several clocks, A B C A B C …, after a round of warm-up."""
    rounds = [{name: clock() for name, clock in clocks.items()} for _ in range(repeats + 1)]
    return {name: [samples[name] for samples in rounds[1:]] for name in clocks}


def reset_peak(device: torch.device) -> int:
    """Memory in use, in bytes; from here on `peak` counts, where the system allows a reset."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc
    if trim is not None:
        trim(0)  # what was freed and kept would not show as growth when used again
    try:
        Path('/proc/self/clear_refs').write_text('5')  # VmHWM := VmRSS
    except OSError:
        pass  # then the peak of the imports may hide that of a very small step
    return resident_memory('VmRSS')


def peak(device: torch.device) -> int:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resident_memory('VmHWM')


def resident_memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no {field}: memory on CPU is measured on Linux')


def measure(
    args: argparse.Namespace, steps: dict[str, Step], steps_of: Callable
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Samples of the times, in ms, and the peaks of the memory, in MiB, of all variants.

    Args:
        args: as given by the user.
        steps: by variant.
        steps_of: makes them, ``steps_of(args, variants)``, in a fresh process.
    """
    if args.device.startswith('cuda'):
        samples = in_turns({name: step.milliseconds for name, step in steps.items()}, args.repeats)
        return samples, {name: step.peak_mb() for name, step in steps.items()}
    # Each in a process of its own, as in training: what one variant does to the heap would
    # change the times of the next.
    with ExitStack() as stack:
        clocks = {}
        for name in steps:
            process = stack.enter_context(new_process(hold, args, name, steps_of))
            clocks[name] = lambda process=process: process.submit(held_ms).result()
        samples = in_turns(clocks, args.repeats)
    return samples, {name: in_new_process(peak_mb_of, args, name, steps_of) for name in steps}


def hold(args: argparse.Namespace, variant: str, steps_of: Callable) -> None:
    """Build the step that this process will measure."""
    global held
    (held,) = steps_of(args, [variant]).values()


def held_ms() -> float:
    """The second of two steps: after the others' turn, caches and memory are cold."""
    held.milliseconds()
    return held.milliseconds()


def peak_mb_of(args: argparse.Namespace, variant: str, steps_of: Callable) -> float:
    """Build a variant, run a tiny step, and measure a full one."""
    (step,) = steps_of(args, [variant]).values()
    if variant.endswith('_compiled'):
        step.milliseconds()  # compiles
    else:
        step.tiny().milliseconds()
    return step.peak_mb()


def check_agreement(steps: dict[str, Step]) -> dict[str, dict[str, float]]:
    """The losses of all variants.

    Raises:
        RuntimeError: if those of the same network differ; names both.
    """
    losses = {variant: step.losses() for variant, step in steps.items()}
    reference = 'masked_dense' if 'masked_dense' in losses else next(iter(losses))
    for variant in set(losses) - {'mmpretrain_sparse'}:
        for name, wanted in losses[reference].items():
            got = losses[variant][name]
            if not abs(got - wanted) <= TOLERANCE * abs(wanted):  # NaN must not pass
                raise RuntimeError(
                    f'nothing to report: {name} is {got} for {variant} and {wanted} for '
                    f'{reference}, a relative difference above {TOLERANCE}'
                )
    return losses


def gflop_of(step: Step) -> float:
    """Operations of the matrix products and convs of a step, in 10^9; two for a multiply-add."""
    with step.prepared(), FlopCounterMode(display=False) as counter:
        step.run()
    return counter.get_total_flops() / 1e9


def peak_gflops(step: Step, repeats: int) -> float:
    """What a large product of matrices reaches, in 10^9 operations per second."""
    side = 4096 if step.device.type == 'cuda' else 2048
    matrix = torch.randn(side, side, device=step.device)

    def multiply() -> float:
        with autocast(step.device, step.amp):
            return milliseconds(lambda: torch.mm(matrix, matrix), step.device)

    times = in_turns(dict(mm=multiply), repeats)['mm']
    return 2 * side**3 / median(times) / 1e6


def optimizer_clocks(cfg: Config, step: Step) -> dict[str, Callable[[], float]]:
    """Of the optimiser, on the gradients that are there, and of the target's following."""
    model, device = step.model, step.device
    optimizer = build_optimizer(cfg, model)
    return dict(
        optimizer=lambda: milliseconds(optimizer.step, device),
        ema=lambda: milliseconds(lambda: model.target.follow(model, 0.996), device),
    )


def steps_of(args: argparse.Namespace, variants: Sequence[str] = VARIANTS) -> dict[str, Step]:
    """The steps of those variants that there are."""
    cfg, device = load_config(args), torch.device(args.device)
    models = {variant: build_variant(cfg, variant, device) for variant in variants}
    return {
        variant: Step(model, variant, args.batch_size, args.size, args.amp)
        for variant, model in models.items()
        if model is not None
    }


def benchmark_step(args: argparse.Namespace) -> dict:
    device = torch.device(args.device)
    cfg = load_config(args)
    steps = steps_of(args, args.variants)
    losses = check_agreement(steps)
    samples, peaks = measure(args, steps, steps_of)
    first = steps.get('sparse') or next(iter(steps.values()))
    gflop, gflops = gflop_of(first), peak_gflops(first, args.repeats)
    samples |= in_turns(optimizer_clocks(cfg, first), args.repeats)

    times = {name: median(values) for name, values in samples.items()}
    base, counterpart = times[first.variant], steps.get('mmpretrain_sparse')
    pairs_per_s = 1e3 * args.batch_size / (base + times['optimizer'] + times['ema'])
    return dict(
        **describe(args, device),
        **describe_step(args, first),
        variants=args.variants,
        **{f'{variant}_ms': times.get(variant) for variant in args.variants},
        speedup=ratio(times.get('masked_dense'), base),
        speedup_over_mmpretrain=ratio(times.get('mmpretrain_sparse'), base),
        optimizer_ms=times['optimizer'],
        ema_ms=times['ema'],
        pairs_per_s=pairs_per_s,
        paper_hours=PAPER_PAIRS / pairs_per_s / 3600,
        gflop=gflop,
        peak_gflops=gflops,
        share_of_peak=gflop / base * 1e3 / gflops,
        **{f'{variant}_peak_mb': peaks.get(variant) for variant in args.variants},
        losses=losses,
        mmpretrain_note=counterpart_note(counterpart and counterpart.model, first.model.backbone),
        samples_ms=samples,
    )


def describe_step(args: argparse.Namespace, step: Step) -> dict:
    """What all variants were given."""
    visible = ~step.mask[0]
    return dict(
        batch_size=args.batch_size,
        num_frames=step.inputs.shape[3],
        size=step.inputs.shape[5],
        amp=args.amp,
        repeats=args.repeats,
        visible=f'{int(visible.sum())} of {visible.numel()}',
        visible_share=visible.float().mean().item(),
    )


def print_step(report: dict) -> None:
    print(f'{report["config"]}: batch {report["batch_size"]}, {report["size"]} pixels, ', end='')
    print(f'{report["visible"]} patches visible, {report["device"]}, {report["threads"]} threads')
    print_variants(report, report['variants'])
    for name in ('optimizer', 'ema'):
        print(f'{name:22}{text(report[f"{name}_ms"]):>10}')
    print(
        f'{text(report["pairs_per_s"])} pairs per second with optimiser and EMA, the data apart: '
        f'{text(report["paper_hours"])} hours for 100 epochs of YouTube-VOS; '
        f'{report["gflop"]:.1f} GFLOP, {report["share_of_peak"]:.0%} of a large matrix product'
    )
    if 'mmpretrain_sparse' in report['variants']:
        print(report['mmpretrain_note'])


def print_variants(report: dict, variants: Sequence[str]) -> None:
    """A table of all variants, their times also as multiples of the first one's."""
    print(f'{"":22}{"ms":>10}{f"to {variants[0]}":>11}{"peak MiB":>10}')
    for variant in variants:
        value, memory = report[f'{variant}_ms'], report[f'{variant}_peak_mb']
        share = text(ratio(value, report[f'{variants[0]}_ms']), 'x')
        print(f'{variant:22}{text(value):>10}{share:>11}{text(memory):>10}')


# ---------------------------------------------------------------------------- encoder


class EncoderStep(Step):
    """The part of the online encoder in a step, or the same encoder on everything.

    Args:
        variant: one of `ENCODER_VARIANTS`.
        model, batch_size, size, amp, num_frames: as `Step`.
    """

    def forward(self) -> dict[str, Tensor]:
        nothing_hidden = torch.zeros_like(self.mask)
        masks = dict(masked=self.mask, all_visible=nothing_hidden, full=None)
        outs = self.features(masks[self.variant])
        # The plain mean is a constant behind a norm: nothing would flow back.
        return dict(loss=sum(out.abs().mean() for out in outs))

    def features(self, mask: Tensor | None) -> list[Tensor]:
        """Outputs of the encoder, each (B, N, C)."""
        outs = self.model.backbone(self.encoded, mask)
        outs = outs if isinstance(outs, tuple) else (outs,)
        return [out if out.ndim == 3 else out.flatten(2).transpose(1, 2) for out in outs]


def encoder_steps_of(
    args: argparse.Namespace, variants: Sequence[str] = ENCODER_VARIANTS
) -> dict[str, EncoderStep]:
    """The steps of one encoder."""
    cfg = load_config(args)
    model = build_model(cfg).to(args.device).train()
    if isinstance(model.backbone, VideoVisionTransformer):
        model.backbone.return_feat_map = True  # all tokens: without a mask it gives one of them
    num_frames, size = input_size(args, cfg, model)
    return {
        variant: EncoderStep(model, variant, args.batch_size, size, args.amp, num_frames)
        for variant in variants
    }


def input_size(args: argparse.Namespace, cfg: Config, model: nn.Module) -> tuple[int, int]:
    """Frames and pixels of the encoder's inputs: those asked for, else those of training."""
    dataset = cfg.get('train_dataloader', {}).get('dataset', {})
    height, width = dataset.get('size', (None, None))  # of generated videos
    trained = dict(size=height if height == width else None, num_frames=None)
    trained |= {k: v for k, v in clip_size(dataset.get('pipeline', [])).items() if v}
    num_frames, size = args.num_frames or trained['num_frames'], args.size or trained['size']
    if tubelet_size(model) is None:
        if args.num_frames is not None:
            raise ValueError(
                f'--num-frames is for encoders of clips, {type(model).__name__} has one of frames'
            )
        num_frames = 1
    for option, value in (('--num-frames', num_frames), ('--size', size)):
        if value is None:
            raise ValueError(f'{option} is needed: the pipeline of {args.config} does not tell it')
    return num_frames, size


def clip_size(pipeline: list[dict]) -> dict[str, int | None]:
    """Frames and pixels of the (square) clips of a pipeline; None for what it does not tell."""
    found = dict(num_frames=None, size=None)
    for step in pipeline:
        if 'transforms' in step:
            found |= {k: v for k, v in clip_size(step['transforms']).items() if v}
        if 'clip_len' in step:
            found['num_frames'] = step['clip_len']
        if step['type'].endswith('Resize') and not step.get('keep_ratio', True):
            width, height = step['scale']
            found['size'] = width if width == height else None
    return found


def check_encoder(step: EncoderStep) -> float:
    """How far masked and full features lie apart where nothing is hidden.

    Returns:
        The largest difference, as a share of the largest feature.

    Raises:
        RuntimeError: if it is too large.
    """
    ways = []
    for mask in (torch.zeros_like(step.mask), None):
        torch.manual_seed(0)  # for drop path
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            ways.append(step.features(mask))
    shares = [(got - wanted).abs().max() / wanted.abs().max() for got, wanted in zip(*ways)]
    difference = torch.stack(shares).max().item()
    if not difference <= TOLERANCE:  # NaN must not pass
        raise RuntimeError(
            'nothing to report: with nothing hidden, masked and full features differ by '
            f'{difference} of the largest one, more than {TOLERANCE}'
        )
    return difference


def benchmark_encoder(args: argparse.Namespace) -> dict:
    steps = encoder_steps_of(args)
    masked = steps['masked']
    difference = check_encoder(masked)
    samples, peaks = measure(args, steps, encoder_steps_of)
    times = {name: median(values) for name, values in samples.items()}
    return dict(
        **describe(args, masked.device),
        encoder=type(masked.model.backbone).__name__,
        **describe_step(args, masked),
        **{f'{variant}_ms': times[variant] for variant in ENCODER_VARIANTS},
        speedup=ratio(times['full'], times['masked']),
        time_share=ratio(times['masked'], times['all_visible']),
        **{f'{variant}_peak_mb': peaks[variant] for variant in ENCODER_VARIANTS},
        memory_share=ratio(peaks['masked'], peaks['full']),
        largest_difference=difference,
        samples_ms=samples,
    )


def print_encoder(report: dict) -> None:
    print(f'{report["config"]}: {report["encoder"]}, batch {report["batch_size"]}, ', end='')
    print(f'{report["num_frames"]} x {report["size"]} x {report["size"]}, ', end='')
    print(f'{report["visible"]} patches visible ({report["visible_share"]:.1%}), ', end='')
    print(f'{report["device"]}, {report["threads"]} threads')
    print_variants(report, ENCODER_VARIANTS)
    share = report['time_share']
    print(f'masked takes {text(share)} of the time of all_visible')


# ------------------------------------------------------------------------------- data


def mmaction_pipeline(pipeline: list[dict]) -> list[dict] | None:
    """The same pipeline in mmaction2's own terms; None if it does not read video files."""
    if not any(step['type'].endswith('OpenVideo') for step in pipeline):
        return None
    plain = []
    for step in pipeline:
        kind = step['type'].split('.')[-1]
        if kind == 'OpenVideo':
            plain.append(dict(type='mmaction.DecordInit'))
        elif kind == 'SampleFramePair':
            plain.append(
                dict(
                    type='mmaction.SampleFrames',
                    clip_len=2,
                    frame_interval=interval_in_frames(step),
                    num_clips=1,
                )
            )
        elif kind == 'SampleClips':
            plain.append(
                dict(
                    type='mmaction.SampleFrames',
                    clip_len=step.get('clip_len', 16),
                    frame_interval=step.get('frame_interval', 4),
                    num_clips=1 if step.get('max_shift') is None else 2,
                    out_of_bound_opt='repeat_last',
                )
            )
        elif kind == 'DecodeFrames':
            plain.append(dict(type='mmaction.DecordDecode'))
        elif kind == 'ForEachClip':
            crops = [crop for crop in step['transforms'] if not crop['type'].endswith('FuseCrops')]
            plain.extend({k: v for k, v in crop.items() if k != 'lazy'} for crop in crops)
        else:
            plain.append(step)
    return plain


def interval_in_frames(sampler: dict) -> int:
    """The (least) interval of a SampleFramePair; seconds at 30 frames per second."""
    interval = sampler.get('frame_interval', 1)
    interval = interval if isinstance(interval, (int, float)) else interval[0]
    in_seconds = sampler.get('unit', 'frames') == 'seconds'
    return max(round(interval * 30), 1) if in_seconds else interval


def usable_items(cfg: Config, num_videos: int) -> tuple[list[int], list[str]]:
    """Numbers of the items to run, each of which was read once; and the unusable videos."""
    dataset = DATASETS.build(one_item_a_video(cfg.train_dataloader.dataset))
    count = min(num_videos, len(dataset))
    items = [i * len(dataset) // count for i in range(count)]
    good = [i for i in items if dataset.prepare_data(i) is not None]
    if not good:
        raise RuntimeError(f'none of {count} videos can be read: {dataset.bad_videos}')
    return good, getattr(dataset, 'bad_videos', [])


def one_item_a_video(dataset: dict, **changes) -> dict:
    """The config of a data set that does not spread the pairs of a video."""
    return {**dataset, **({'spread_pairs': False} if 'spread_pairs' in dataset else {}), **changes}


def build_loader(cfg: Config, dataset: BaseDataset, workers: int, batch_size: int) -> Iterator:
    """Batches without end, as training collates them."""
    loader = {k: v for k, v in cfg.train_dataloader.items() if k != 'batch_sampler'}
    loader.update(
        dataset=dataset,
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=dict(type='videomac_mm.ResumableSampler', shuffle=True),
    )
    loader = Runner.build_dataloader(loader, seed=0)
    loader.sampler.bind(batch_size, loader.drop_last, endless=True)
    return iter(loader)


def clips_per_second(batches: Iterator, seconds: float, waiting: int) -> float:
    """The rate of one window, after the batches that may have been waiting are used up."""
    for _ in range(waiting):
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += sum(len(clips) for clips in next(batches)['inputs'])  # (V, 3, T, H, W) each
    return count / (time.perf_counter() - start)


def measure_data(args: argparse.Namespace, with_mmaction: bool) -> dict:
    """Samples for each number of workers, and what was read."""
    cfg = data_config(args)
    set_multi_processing(**cfg.get('env_cfg', {}).get('mp_cfg', {}))
    dataset_cfg = cfg.train_dataloader.dataset
    items, unusable = usable_items(cfg, args.num_videos)
    configs = dict(ours=dataset_cfg)
    if with_mmaction:
        plain = mmaction_pipeline(dataset_cfg.pipeline)
        configs['mmaction'] = one_item_a_video(dataset_cfg, pipeline=plain)
    datasets = {name: DATASETS.build(config) for name, config in configs.items()}
    for dataset in datasets.values():
        dataset.get_subset_(items)

    by_workers = {}
    for workers in args.workers:
        clocks = {}
        for name, dataset in datasets.items():
            batches = build_loader(cfg, dataset, workers, args.batch_size)
            # Each worker keeps two batches ready while it is another's turn.
            clocks[name] = rate_clock(batches, args.seconds, 2 * workers)
        by_workers[str(workers)] = in_turns(clocks, args.windows)
    late = getattr(datasets['ours'], 'bad_videos', [])
    unusable = sorted({*unusable, *late})
    return dict(num_videos=len(items), unusable=unusable, samples=by_workers)


def rate_clock(batches: Iterator, seconds: float, waiting: int) -> Callable[[], float]:
    return lambda: clips_per_second(batches, seconds, waiting)


def data_config(args: argparse.Namespace) -> Config:
    cfg = load_config(args)
    if args.data_root is not None:
        cfg.train_dataloader.dataset.data_root = args.data_root
    return cfg


def benchmark_data(args: argparse.Namespace) -> dict:
    pipeline = data_config(args).train_dataloader.dataset.pipeline
    compared = mmaction_pipeline(pipeline) is not None
    note = "mmaction2's pipeline over the same videos, one pair per opened video"
    if not compared:
        note = "no comparison: mmaction2's pipeline needs video files"
    try:
        found = in_new_process(measure_data, args, compared)
    except (BrokenProcessPool, RuntimeError) as err:  # the latter if a worker dies
        if not compared:
            raise
        compared, note = False, f"no comparison: mmaction2's pipeline failed: {err}"
        found = in_new_process(measure_data, args, False)

    repeats = math.prod(step.get('repeats', 1) for step in pipeline)
    for samples in found['samples'].values():
        samples['ours'] = [rate / repeats for rate in samples['ours']]
    by_workers = {
        workers: {name: median(values) for name, values in samples.items()}
        for workers, samples in found['samples'].items()
    }
    ours = max(rates['ours'] for rates in by_workers.values())
    theirs = max(rates['mmaction'] for rates in by_workers.values()) if compared else None
    return dict(
        **describe(args, torch.device('cpu')),
        batch_size=args.batch_size,
        data_root=args.data_root,
        num_videos=found['num_videos'],
        num_unusable=len(found['unusable']),
        unusable=found['unusable'],
        crops_per_clip=repeats,
        clips_per_s=ours,
        mmaction_clips_per_s=theirs,
        speedup=ratio(ours, theirs),
        mmaction_note=note,
        by_workers=by_workers,
        samples_clips_per_s=found['samples'],
    )


def print_data(report: dict) -> None:
    print(f'{report["config"]}: {report["num_videos"]} videos, ', end='')
    print(f'{report["num_unusable"]} unusable, {report["device"]}, clips per second:')
    print(f'{"workers":>8}{"ours":>10}{"mmaction2":>11}{"ratio":>8}')
    for workers, rates in report['by_workers'].items():
        ours, theirs = rates['ours'], rates.get('mmaction')
        print(f'{workers:>8}{text(ours):>10}{text(theirs):>11}{text(ratio(ours, theirs)):>8}')
    print(report['mmaction_note'])


# ------------------------------------------------------------------------ propagation


class Propagation:
    """One form of label propagation on random features: a full queue and a new frame."""

    def __init__(self, args: argparse.Namespace, form: str) -> None:
        self.form = FORMS[form]
        self.device = torch.device(args.device)
        self.window = Window(args.radius, self.form['window'])
        self.mixing = {key: self.form[key] for key in ('topk', 'temperature', 'keep_ties')}
        generator = torch.Generator().manual_seed(0)
        num_frames = self.form['context']['num_frames']
        shape = (args.channels, *args.grid)
        # Frames of a video are alike.
        scene = torch.randn(shape, generator=generator)
        noise = torch.randn(num_frames + 2, *shape, generator=generator)
        self.features = (scene + 0.5 * noise).to(self.device)
        labels = torch.rand(num_frames + 1, 4, *args.grid, generator=generator)
        self.labels = labels.softmax(1).to(self.device)

    def fill(self) -> ContextFrames:
        first, *later = zip(self.features[:-1], self.labels)
        frames = ContextFrames(*first, window=self.window, **self.form['context'])
        for features, labels in later:
            frames.push(features, labels)
        return frames

    def mask(self) -> Tensor:
        """Which cells may look at which: (frames, h*w, h*w)."""
        height, width = self.features.shape[-2:]
        cell = torch.arange(height * width, device=self.device)
        y, x = cell // width, cell % width
        allowed = self.window.contains(y[:, None] - y, x[:, None] - x)
        allowed = allowed.expand(len(self.labels), -1, -1)
        if self.form['context'].get('window_on_first', True):
            return allowed
        return torch.cat([torch.ones_like(allowed[:1]), allowed[1:]])

    def windowed(self, frames: ContextFrames) -> Tensor:
        """A frame's whole work: its labels, and its place in the queue."""
        labels = frames.propagate(self.features[-1], **self.mixing)
        frames.push(self.features[-1], labels)
        return labels

    def dense(self, allowed: Tensor) -> Tensor:
        return propagate_densely(
            self.features[-1], self.features[:-1], self.labels, allowed=allowed, **self.mixing
        )


def propagation_peak_mb(args: argparse.Namespace, form: str, dense: bool) -> float:
    """Growth of the peak memory over the features, the queue included."""
    load_config(args)
    propagation = Propagation(args, form)
    allowed = propagation.mask() if dense else None  # made once for a video, so not counted
    before = reset_peak(propagation.device)
    if dense:
        propagation.dense(allowed)
    else:
        propagation.windowed(propagation.fill())
    return (peak(propagation.device) - before) / 2**20


@torch.no_grad()
def benchmark_form(args: argparse.Namespace, form: str) -> dict:
    propagation = Propagation(args, form)
    allowed = propagation.mask()
    got, wanted = propagation.windowed(propagation.fill()), propagation.dense(allowed)
    difference = (got - wanted).abs().max().item()
    if not difference <= TOLERANCE:
        raise RuntimeError(f'nothing to report: labels differ by {difference} in form {form}')

    def clock(variant: str, argument: Callable) -> Callable[[], float]:
        def measure() -> float:
            ready = argument()
            return milliseconds(lambda: getattr(propagation, variant)(ready), propagation.device)

        return measure

    clocks = dict(
        windowed=clock('windowed', propagation.fill), dense=clock('dense', lambda: allowed)
    )
    samples = in_turns(clocks, args.repeats)
    times = {name: median(values) for name, values in samples.items()}
    if propagation.device.type == 'cuda':
        memory = [propagation_peak_mb(args, form, dense) for dense in (False, True)]
    else:
        memory = [in_new_process(propagation_peak_mb, args, form, dense) for dense in (False, True)]
    return dict(
        windowed_ms=times['windowed'],
        dense_ms=times['dense'],
        speedup=ratio(times['dense'], times['windowed']),
        windowed_peak_mb=memory[0],
        dense_peak_mb=memory[1],
        memory_share=ratio(*memory),
        largest_difference=difference,
        samples_ms=samples,
    )


@torch.no_grad()
def network_ms(args: argparse.Namespace, cfg: Config, device: torch.device) -> float:
    """Median time of the features of one frame that gives the grid."""
    model = MODELS.build(cfg.model).to(device).eval()
    size = [number * model.stride for number in args.grid]
    frame = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    clock = dict(network=lambda: milliseconds(lambda: model.extract_feat(frame), device))
    return median(in_turns(clock, args.repeats)['network'])


def benchmark_propagation(args: argparse.Namespace) -> dict:
    device = torch.device(args.device)
    cfg = load_config(args)
    return dict(
        **describe(args, device),
        grid=args.grid,
        channels=args.channels,
        radius=args.radius,
        network_ms=network_ms(args, cfg, device),
        **{form: benchmark_form(args, form) for form in args.forms},
    )


def print_propagation(report: dict) -> None:
    grid = 'x'.join(map(str, report['grid']))
    print(f'{grid} cells, {report["channels"]} channels, radius {report["radius"]}, ', end='')
    print(f'{report["device"]}, {report["threads"]} threads')
    print(f'{"":10}{"ms":>10}{"dense ms":>10}{"ratio":>8}{"MiB":>10}{"dense MiB":>10}')
    for form in FORMS:
        if form in report:
            found = report[form]
            print(f'{form:10}{text(found["windowed_ms"]):>10}{text(found["dense_ms"]):>10}', end='')
            print(f'{text(found["speedup"], "x"):>8}{text(found["windowed_peak_mb"]):>10}', end='')
            print(f'{text(found["dense_peak_mb"]):>10}')
    print(f'{"network":10}{text(report["network_ms"]):>10}  ({report["config"]})')


# ------------------------------------------------------------------------- end to end

PARTS = ('waiting', 'preprocessing', 'step', 'optimizer', 'ema')


class Training:
    """Iterations of training, part by part."""

    def __init__(self, args: argparse.Namespace, cfg: Config) -> None:
        self.amp, self.device = args.amp, torch.device(args.device)
        self.model = build_model(cfg).to(self.device).train()
        self.optimizer = build_optimizer(cfg, self.model)
        self.num_clips = 0

    def iterate(self, batches: Iterator) -> list[float]:
        """Milliseconds of each part of one iteration."""
        times = [time.perf_counter()]

        def part_is_over() -> None:
            synchronize(self.device)
            times.append(time.perf_counter())

        batch = next(batches)
        part_is_over()
        data = self.model.data_preprocessor(batch, training=True)
        part_is_over()
        with autocast(self.device, self.amp):
            losses = self.model(**data, mode='loss')
        self.model.parse_losses(losses)[0].backward()
        part_is_over()
        self.optimizer.step()
        self.optimizer.zero_grad()
        part_is_over()
        follow(self.model)
        part_is_over()
        self.num_clips = sum(map(len, batch['inputs']))
        return [1e3 * (end - start) for start, end in itertools.pairwise(times)]

    def window(self, batches: Iterator, waiting: int, iterations: int) -> list[float]:
        """Mean of each part, after the batches that may have been waiting."""
        for _ in range(waiting):
            self.iterate(batches)
        rows = [self.iterate(batches) for _ in range(iterations)]
        return [sum(part) / iterations for part in zip(*rows)]


def build_optimizer(cfg: Config, model: nn.Module, **changes) -> torch.optim.Optimizer:
    """The optimiser of a config, with some of its settings changed."""
    keys = ('optimizer', 'paramwise_cfg', 'constructor')
    optim_cfg = {k: v for k, v in cfg.optim_wrapper.items() if k in keys}
    optim_cfg['optimizer'] = dict(optim_cfg['optimizer'], **changes)
    return build_optim_wrapper(model, dict(type=OptimWrapper, **optim_cfg)).optimizer


def follow(model: nn.Module) -> None:
    if hasattr(model, 'target'):
        model.target.follow(model, 0.996)


def measure_end_to_end(args: argparse.Namespace) -> dict:
    """Samples of each part for each number of workers, and what was read."""
    cfg = data_config(args)
    set_multi_processing(**cfg.get('env_cfg', {}).get('mp_cfg', {}))
    items, unusable = usable_items(cfg, args.num_videos)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    dataset.get_subset_(items)
    # Before the model: workers are forked from a process that has no threads yet.
    loaders = {n: build_loader(cfg, dataset, n, args.batch_size) for n in args.workers}
    training = Training(args, cfg)
    clocks = {
        str(n): partial(training.window, batches, 2 * n, args.iterations)
        for n, batches in loaders.items()
    }
    samples = {
        workers: dict(zip(PARTS, map(list, zip(*windows))))
        for workers, windows in in_turns(clocks, args.repeats).items()
    }
    return dict(
        num_videos=len(items),
        num_unusable=len(unusable),
        clips_of_iteration=training.num_clips,
        threads=torch.get_num_threads(),
        samples_ms=samples,
    )


def benchmark_end_to_end(args: argparse.Namespace) -> dict:
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # read when the new process loads torch
    found = in_new_process(measure_end_to_end, args)
    by_workers = {}
    for workers, parts in found['samples_ms'].items():
        total = median(map(sum, zip(*parts.values())))
        by_workers[workers] = dict(
            iteration_ms=total,
            iterations_per_s=1e3 / total,
            clips_per_s=1e3 / total * found['clips_of_iteration'],
            shares={
                part: sum(values) / sum(map(sum, parts.values())) for part, values in parts.items()
            },
        )
    return dict(
        describe(args, torch.device(args.device)),
        batch_size=args.batch_size,
        amp=args.amp,
        data_root=args.data_root,
        iterations=args.iterations,
        by_workers=by_workers,
        **found,
    )


def print_end_to_end(report: dict) -> None:
    print(
        f'{report["config"]}: batch {report["batch_size"]}, {report["num_videos"]} videos, ', end=''
    )
    print(f'{report["device"]}, {report["threads"]} threads; shares of an iteration:')
    print(f'{"workers":>8}{"it/s":>8}{"clips/s":>9}', *(f'{part:>13}' for part in PARTS))
    for workers, found in report['by_workers'].items():
        print(f'{workers:>8}{text(found["iterations_per_s"]):>8}', end='')
        print(f'{text(found["clips_per_s"]):>9}', end=' ')
        print(*(f'{found["shares"][part]:>13.1%}' for part in PARTS))


# ------------------------------------------------------------------------------ scale


class Replica:
    """One of several processes that train together, on random inputs of its own."""

    def __init__(self, args: argparse.Namespace, rank: int) -> None:
        cfg = load_config(args)
        self.rank, self.amp, self.device = rank, args.amp, torch.device(args.device)
        if self.device.type == 'cuda':
            torch.cuda.set_device(rank)
        model = build_model(cfg).to(self.device).train()
        if any(isinstance(x, (GatheredBatchNorm1d, nn.SyncBatchNorm)) for x in model.modules()):
            raise ValueError(
                f'scale runs one process alone, and those of {type(model).__name__} wait for each '
                'other in the middle of a step'
            )
        num_frames, size = input_size(args, cfg, model)
        num_frames = num_frames if tubelet_size(model) else 2
        self.shape = (args.batch_size, 1, 3, num_frames, size, size)
        self.inputs = torch.randn(self.shape).to(self.device)
        self.network = MMDistributedDataParallel(
            model,
            device_ids=[rank] if self.device.type == 'cuda' else None,
            broadcast_buffers=False,  # as mmengine's runner
        )
        self.buckets: list[Tensor] = []
        self.network.register_comm_hook(self.buckets, exchange)
        whole = cfg.optim_wrapper.optimizer
        kind = whole.pop('optimizer_type', whole.type)  # of a config that shards it already
        # Weights that stay where they are keep all steps alike.
        self.optimizer = build_optimizer(cfg, model, type=kind, lr=0.0)
        self.sharded = build_optimizer(
            cfg, model, type='ZeroRedundancyOptimizer', optimizer_type=kind, lr=0.0
        )

    def step(self, synced: bool = True) -> None:
        self.optimizer.zero_grad()
        with nullcontext() if synced else self.network.no_sync():
            with autocast(self.device, self.amp):
                losses = self.network(self.inputs, mode='loss')
            self.network.module.parse_losses(losses)[0].backward()
        self.optimizer.step()
        follow(self.network.module)

    def all_reduce(self) -> None:
        for work in [torch.distributed.all_reduce(x, async_op=True) for x in self.buckets]:
            work.wait()

    def milliseconds(self, action: Callable, only_first: bool = False) -> float:
        """Until the last process is done; or the first one, while the others wait."""

        def all_of_it() -> None:
            if not only_first or self.rank == 0:
                action()
            if not only_first:
                torch.distributed.barrier()

        torch.distributed.barrier()
        return milliseconds(all_of_it, self.device)

    def clocks(self) -> dict[str, Callable[[], float]]:
        unsynced = partial(self.step, synced=False)
        return dict(
            alone=partial(self.milliseconds, unsynced, only_first=True),
            unsynced=partial(self.milliseconds, unsynced),
            synced=partial(self.milliseconds, self.step),
            all_reduce=partial(self.milliseconds, self.all_reduce),
            optimizer=partial(self.milliseconds, self.optimizer.step),
            sharded=partial(self.milliseconds, self.sharded.step),
        )


def exchange(buckets: list[Tensor], bucket: GradBucket) -> Future[Tensor]:
    """DDP's own all-reduce; keeps buckets of the same sizes for `Replica.all_reduce`."""
    if bucket.index() == 0:
        buckets.clear()
    buckets.append(torch.zeros_like(bucket.buffer()))
    return allreduce_hook(None, bucket)


def state_mb(optimizer: torch.optim.Optimizer) -> float:
    """What an optimiser keeps in this process, in MiB."""
    states = getattr(optimizer, 'optim', optimizer).state.values()
    tensors = [value for state in states for value in state.values() if torch.is_tensor(value)]
    return sum(x.numel() * x.element_size() for x in tensors) / 2**20


def scale_process(rank: int, args: argparse.Namespace, folder: str) -> None:
    torch.distributed.init_process_group(
        'nccl' if args.device.startswith('cuda') else 'gloo',
        init_method=f'file://{folder}/store',
        rank=rank,
        world_size=args.processes,
    )
    replica = Replica(args, rank)
    for _ in range(2):  # DDP makes its final buckets after the first step
        replica.step()
    bucket_bytes = [x.numel() * x.element_size() for x in replica.buckets]
    samples = in_turns(replica.clocks(), args.repeats)
    shards = [None] * args.processes
    torch.distributed.all_gather_object(shards, state_mb(replica.sharded))
    if rank == 0:
        found = dict(
            shape=list(replica.shape),
            num_parameters=sum(p.numel() for p in replica.network.module.parameters()),
            bucket_bytes=bucket_bytes,
            optimizer_state_mb=state_mb(replica.optimizer),
            sharded_state_mb=shards,
            samples_ms=samples,
        )
        Path(folder, 'found.json').write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def benchmark_scale(args: argparse.Namespace) -> dict:
    available = torch.cuda.device_count()
    if args.device.startswith('cuda') and args.processes > available:
        raise ValueError(f'--processes {args.processes} need as many GPUs, there are {available}')
    if args.bandwidth and len(args.bandwidth) not in (1, len(args.gpus)):
        raise ValueError(
            f'--bandwidth takes one number or {len(args.gpus)}, as --gpus, got {args.bandwidth}'
        )
    with TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(scale_process, (args, folder), args.processes)
        found = json.loads(Path(folder, 'found.json').read_text())
    times = {name: median(values) for name, values in found['samples_ms'].items()}
    num_clips = args.batch_size
    gradient_bytes = sum(found['bucket_bytes'])
    sent = ring_bytes(gradient_bytes, args.processes)
    measured = sent / times['all_reduce'] / 1e6 if sent else None
    return dict(
        dict(describe(args, torch.device(args.device)), threads=args.threads),
        processes=args.processes,
        batch_size=args.batch_size,
        amp=args.amp,
        **{f'{name}_ms': value for name, value in times.items()},
        clips_per_s_alone=1e3 * num_clips / times['alone'],
        clips_per_s=1e3 * num_clips * args.processes / times['synced'],
        efficiency=times['alone'] / times['synced'],
        gradient_bytes=gradient_bytes,
        bandwidth_gb_s=measured,
        estimates=estimate(args, gradient_bytes, times['alone'], measured, num_clips),
        **found,
    )


def ring_bytes(num_bytes: int, processes: int) -> float:
    """What each process sends in a ring's all-reduce."""
    return 2 * (processes - 1) / processes * num_bytes


def estimate(
    args: argparse.Namespace,
    gradient_bytes: int,
    step_ms: float,
    bandwidth: float | None,
    num_clips: int,
) -> list[dict]:
    """What the exchange costs on more GPUs; measured values stand in for what is not given."""
    step_ms = args.step_ms or step_ms
    bandwidths = args.bandwidth or [bandwidth]
    rows = []
    for gpus, speed in zip(args.gpus, bandwidths * (len(args.gpus) if len(bandwidths) == 1 else 1)):
        if speed is None:  # one process, which exchanges nothing
            continue
        exchange_ms = ring_bytes(gradient_bytes, gpus) / speed / 1e6
        totals = dict(hidden=max(step_ms, exchange_ms), exposed=step_ms + exchange_ms)
        rows.append(
            dict(
                gpus=gpus,
                bandwidth_gb_s=speed,
                step_ms=step_ms,
                exchange_ms=exchange_ms,
                **{f'efficiency_{name}': step_ms / total for name, total in totals.items()},
                **{
                    f'clips_per_s_{name}': 1e3 * num_clips * gpus / total
                    for name, total in totals.items()
                },
            )
        )
    return rows


def print_scale(report: dict) -> None:
    shape = 'x'.join(map(str, report['shape']))
    print(
        f'{report["config"]}: inputs {shape} for each of {report["processes"]} processes, ', end=''
    )
    print(f'{report["device"]}, {report["threads"]} threads each')
    for name in report['samples_ms']:
        print(f'{name:12}{text(report[f"{name}_ms"], " ms"):>14}')
    print(f'{text(report["clips_per_s_alone"])} clips per second alone, ', end='')
    print(f'{text(report["clips_per_s"])} together: efficiency {report["efficiency"]:.1%}')
    print(f'gradients: {text(report["gradient_bytes"] / 2**20, " MiB")} in ', end='')
    print(f'{len(report["bucket_bytes"])} buckets, {text(report["bandwidth_gb_s"], " GB/s")}')
    shards = ', '.join(map(text, report['sharded_state_mb']))
    print(f'optimiser: {text(report["optimizer_state_mb"], " MiB")}, sharded {shards}')
    print(f'{"GPUs":>6}{"GB/s":>8}{"step ms":>10}{"exchange":>10}{"hidden":>18}{"exposed":>18}')
    for row in report['estimates']:
        print(f'{row["gpus"]:>6}{text(row["bandwidth_gb_s"]):>8}{text(row["step_ms"]):>10}', end='')
        print(f'{text(row["exchange_ms"]):>10}', end='')
        for name in ('hidden', 'exposed'):
            rate = f'{row[f"clips_per_s_{name}"]:.0f}/s'
            print(f'{row[f"efficiency_{name}"]:>9.1%}{rate:>9}', end='')
        print()


COMMANDS = dict(
    step=(benchmark_step, print_step),
    encoder=(benchmark_encoder, print_encoder),
    data=(benchmark_data, print_data),
    propagation=(benchmark_propagation, print_propagation),
    scale=(benchmark_scale, print_scale),
    **{'end-to-end': (benchmark_end_to_end, print_end_to_end)},
)


def main() -> None:
    args = parse_args()
    run, show = COMMANDS[args.command]
    report = run(args)
    show(report)
    finish(report, args.json, args.plot)


if __name__ == '__main__':
    main()
