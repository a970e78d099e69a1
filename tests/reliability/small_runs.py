"""Small runs of all four methods, to be stopped and resumed."""

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config

ROOT = Path(__file__).parent.parent.parent
DEMOS = dict(
    videomac='videomac/videomac_convnextv2-atto_demo.py',
    videomae='videomae/videomae_vit-mini-p16_demo.py',
    motionmae='motionmae/motionmae_vit-mini-p16_demo.py',
    cmae_v='cmae_v/cmae-v_vit-mini-p16_demo.py',
)
STEPS = 12
SAVE_EVERY = 2


def small_config(
    method: str, work_dir: Path, by_epoch: bool = False, workers: int = 0, **runtime
) -> Config:
    """The method's demo, shrunk to 12 steps of a twentieth of a second, with all its randomness.

    Args:
        method: a key of `DEMOS`.
        work_dir: of the run.
        by_epoch: count epochs of 3 steps, not iterations.
        workers: of the data loader.
        **runtime: ``resume``, ``launcher`` ….
    """
    cfg = Config.fromfile(ROOT / 'configs' / DEMOS[method])
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'{work_dir.parent.name}_{work_dir.name}'
    cfg.log_level = 'WARNING'
    loader = cfg.train_dataloader
    # Persistent workers take 5 seconds each to end where no process ends with them.
    loader.update(batch_size=2, num_workers=workers, persistent_workers=False)
    loader.dataset.update(num_videos=7, num_frames=16)
    loader.dataset.size = (64, 64)
    if method.startswith('videomac'):
        loader.dataset.pipeline[2].transforms[1].scale = (64, 64)
        arch = dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])
        cfg.model.backbone.update(arch=arch, drop_path_rate=0.2)
        cfg.model.neck.update(in_channels=32, embed_dims=16)
    else:
        cfg.model.backbone.update(img_size=64, depth=2, drop_path_rate=0.2)
        cfg.model.neck.update(num_patches=8 * 4 * 4, depth=1)
    cfg.custom_hooks[-1].interval = 5  # panels
    if by_epoch:
        cfg.train_cfg = dict(type='videomac_mm.EpochBasedTrainLoop', max_epochs=STEPS // 3)
        cfg.log_processor.by_epoch = True
        cfg.default_hooks.checkpoint.update(by_epoch=True, interval=1)
    else:
        cfg.train_cfg.max_iters = STEPS
        cfg.default_hooks.checkpoint.interval = SAVE_EVERY
    cfg.update(runtime)
    return cfg


def use_stock_mmengine(cfg: Config) -> None:
    """Put mmengine's own loop, sampler, hook and files in the place of ours. For this process."""
    import mmengine.runner.checkpoint as stock
    import mmengine.runner.runner as module

    module.save_checkpoint = stock.save_checkpoint
    module.find_latest_checkpoint = stock.find_latest_checkpoint
    cfg.default_hooks.checkpoint.type = 'mmengine.CheckpointHook'
    by_epoch = 'max_epochs' in cfg.train_cfg
    cfg.train_cfg.type = f'mmengine.{"Epoch" if by_epoch else "Iter"}BasedTrainLoop'
    cfg.train_dataloader.sampler = dict(
        type='mmengine.DefaultSampler' if by_epoch else 'mmengine.InfiniteSampler', shuffle=True
    )


def start(task: Callable[[], None], log: Path) -> int:
    """Run a task in a process of its own, which starts with all that is imported here.

    Returns:
        Its number. It ends with 0, with 1 after an error, or with the code of a ``SystemExit``.
    """
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        sys.stdout = sys.stderr = open(log, 'a', buffering=1)
        for number in (1, 2):
            os.dup2(sys.stdout.fileno(), number)
        torch.set_num_threads(1)
        task()
        code = 0
    except SystemExit as err:
        code = err.code if isinstance(err.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def final_state(work_dir: Path) -> dict:
    """What a run has left: weights, targets, optimiser and schedulers."""
    name = Path((work_dir / 'last_checkpoint').read_text()).name
    checkpoint = torch.load(work_dir / name, map_location='cpu', weights_only=True)
    return {key: checkpoint[key] for key in ('state_dict', 'optimizer', 'param_schedulers', 'meta')}


def differences(got: object, wanted: object, name: str = '') -> list[str]:
    """Names of the values that are not equal bit for bit."""
    if isinstance(wanted, torch.Tensor):
        same = isinstance(got, torch.Tensor) and torch.equal(got, wanted)
        return [] if same else [name]
    if isinstance(wanted, dict):
        if not isinstance(got, dict) or got.keys() != wanted.keys():
            return [name]
        return [d for k in wanted for d in differences(got[k], wanted[k], f'{name}.{k}')]
    if isinstance(wanted, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(wanted):
            return [name]
        pairs = enumerate(zip(got, wanted))
        return [d for i, (g, w) in pairs for d in differences(g, w, f'{name}.{i}')]
    return [] if got == wanted else [name]


def compare(work_dir: Path, reference: Path) -> list[str]:
    """What differs between two finished runs, but for names and times."""
    got, wanted = final_state(work_dir), final_state(reference)
    for state in (got, wanted):
        state['meta'] = {key: state['meta'][key] for key in ('epoch', 'iter', 'seed')}
    return differences(got, wanted)


def kill_after(number: int, seconds: float) -> bool:
    """Wait, then end a process by SIGKILL. False if it had ended before."""
    pidfd = os.pidfd_open(number)
    try:
        import select

        ended, _, _ = select.select([pidfd], [], [], seconds)
        if ended:
            return False
        os.kill(number, signal.SIGKILL)
        return True
    finally:
        os.close(pidfd)


def random_moment(seconds: float) -> float:
    """A moment within ``seconds``, all alike."""
    return random.uniform(0, seconds)
