"""What mmengine 0.10 breaks on CPUs and with sharded optimisers."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from mmengine.device import get_device

from videomac_mm.compat._repair import imports, replace


def launcher_needs_cuda() -> None:
    """mmengine 0.10: ``--launcher pytorch`` calls ``torch.cuda.set_device`` on CPU."""

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def init(backend: str, init_backend: str = 'torch', **kwargs: Any) -> None:
                if get_device() != 'cpu':
                    return original(backend, init_backend=init_backend, **kwargs)
                # 'nccl' is mmengine's default, and no choice without a GPU.
                backend = 'gloo' if backend == 'nccl' else backend
                torch.distributed.init_process_group(backend=backend, **kwargs)

            return init

        replace(module, '_init_dist_pytorch', make)

    imports.after('mmengine.dist.utils', repair)


def ddp_needs_cuda() -> None:
    """mmengine 0.10: hands DDP the local rank as device, which a CPU model refuses."""

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def __init__(self: Any, module: torch.nn.Module, *args: Any, **kwargs: Any):
                if all(p.device.type == 'cpu' for p in module.parameters()):
                    kwargs['device_ids'] = None
                original(self, module, *args, **kwargs)

            return __init__

        replace(module.MMDistributedDataParallel, '__init__', make)

    imports.after('mmengine.model.wrappers.distributed', repair)


def zero_optimizer_hangs_at_checkpoints() -> None:
    """mmengine 0.10: one rank saves, and waits for the others' shards of the optimiser's state."""

    def repair(module: ModuleType) -> None:
        from mmengine.dist import is_main_process
        from mmengine.optim import ZeroRedundancyOptimizer

        def make(original: Callable) -> Callable:
            def save_checkpoint(
                self: Any,
                out_dir: str,
                filename: str,
                file_client_args: dict | None = None,
                save_optimizer: bool = True,
                *args: Any,
                **kwargs: Any,
            ) -> None:
                optimizer = getattr(self.optim_wrapper, 'optimizer', None)
                is_sharded = isinstance(optimizer, ZeroRedundancyOptimizer)
                if save_optimizer and is_sharded and not is_main_process():
                    optimizer.state_dict()  # sends this rank's shard
                original(self, out_dir, filename, file_client_args, save_optimizer, *args, **kwargs)

            return save_checkpoint

        # Marked by `master_only`: where all ranks save, all send.
        if hasattr(module.Runner.save_checkpoint, '__wrapped__'):
            replace(module.Runner, 'save_checkpoint', make)

    imports.after('mmengine.runner.runner', repair)


def checkpoints_are_written_in_place() -> None:
    """mmengine 0.10: a kill or a full disk leaves half a checkpoint under the final name."""

    def repair(module: ModuleType) -> None:
        from mmengine.fileio import LocalBackend, get_file_backend

        def make(original: Callable) -> Callable:
            def save_checkpoint(
                checkpoint: Any,
                filename: str,
                file_client_args: dict | None = None,
                backend_args: dict | None = None,
            ) -> None:
                from videomac_mm.weights.seal import save_sealed

                backend = get_file_backend(filename, backend_args=backend_args)
                if file_client_args is None and type(backend) is LocalBackend:
                    save_sealed(checkpoint, filename)
                else:  # an object store puts a whole object or none
                    original(checkpoint, filename, file_client_args, backend_args)

            return save_checkpoint

        replace(module, 'save_checkpoint', make)

    imports.after('mmengine.runner.runner', repair)


def resumes_from_what_may_be_damaged() -> None:
    """mmengine 0.10: ``--resume`` takes the file that was written last, whole or not."""

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def find_latest_checkpoint(path: str) -> str | None:
                from videomac_mm.weights.newest import newest_checkpoint

                return newest_checkpoint(path)

            return find_latest_checkpoint

        replace(module, 'find_latest_checkpoint', make)

    imports.after('mmengine.runner.runner', repair)


def downloads_are_unpickled_freely() -> None:
    """mmengine 0.10: runs code in checkpoints of URLs; in any, with a variable of torch's set."""

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def load_url(url: str, *args: Any, **kwargs: Any) -> Any:
                from videomac_mm.weights.files import unsafe_is_refused

                with unsafe_is_refused(url):
                    return original(url, *args, **{**kwargs, 'weights_only': True})

            return load_url

        replace(module, 'load_url', make)
        if isinstance(module.torch, _TorchOfLoaders):
            return
        # The loaders of all other schemes call `torch.load`, each in its own place.
        module.torch = _TorchOfLoaders('torch')

    imports.after('mmengine.runner.checkpoint', repair)


class _TorchOfLoaders(ModuleType):
    """torch, as the loaders of checkpoints see it: its ``load`` reads weights only."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(file: Any, map_location: Any = None, mmap: bool | None = None, **_: Any) -> Any:
        from videomac_mm.weights.files import load_weights_only

        return load_weights_only(file, map_location, mmap)  # whatever later releases ask for


def amp_optim_wrapper_refuses_cpu() -> None:
    """mmengine 0.10: ``AmpOptimWrapper`` asserts a GPU; on CPU it may use bfloat16."""

    def repair(module: ModuleType) -> None:
        from mmengine.optim.optimizer.optimizer_wrapper import OptimWrapper

        def make(original: Callable) -> Callable:
            def __init__(
                self: Any,
                loss_scale: Any = 'dynamic',
                dtype: Any = None,
                use_fsdp: bool = False,
                **kwargs: Any,
            ) -> None:
                if get_device() != 'cpu':
                    return original(self, loss_scale, dtype, use_fsdp, **kwargs)
                OptimWrapper.__init__(self, **kwargs)
                # Autocast on CPU knows bfloat16 only, whatever the config's dtype;
                # its exponent is float32's, so there is no loss to scale.
                self.cast_dtype = torch.bfloat16
                self.loss_scaler = torch.amp.GradScaler('cpu', enabled=False)
                self._scale_update_param = None

            return __init__

        replace(module.AmpOptimWrapper, '__init__', make)

    imports.after('mmengine.optim.optimizer.amp_optimizer_wrapper', repair)
