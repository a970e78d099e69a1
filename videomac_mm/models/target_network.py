"""The target half of algorithms that learn from their own moving average."""

import copy

import torch
from mmengine.logging import MessageHub, print_log
from torch import Tensor, nn


class TargetNetwork(nn.Module):
    """Copies of online modules that follow them as an exponential moving average.

    They are always in eval mode, and only `follow` and `copy_from` change them. Their weights
    are buffers, not parameters: saved with the algorithm, but out of reach of gradients,
    optimisers and distributed wrappers.

    Args:
        **online: the modules to copy, under the names they have in the algorithm; `follow`
            finds them there by the same names.
    """

    # What moves this network during training. `TargetEMAHook` writes its name here; a hook of
    # your own that calls `follow` must do the same. See `HasTarget.parse_losses`.
    mover: str | None = None

    def __init__(self, **online: nn.Module) -> None:
        super().__init__()
        for name, module in online.items():
            self.add_module(name, copy.deepcopy(module))
        for module in self.modules():
            for name, param in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                # A tensor of its own for each name, because each name is moved once.
                module.register_buffer(name, param.detach().clone())
        self.eval()
        self.prefix = ''  # of its keys in the state dict that was loaded last
        self.found = False  # whether that state dict had any of them

    def train(self, mode: bool = True) -> 'TargetNetwork':
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, algorithm: nn.Module, momentum: float) -> None:
        """Move every weight to ``momentum * target + (1 - momentum) * online``.

        What is a buffer in the online modules, such as running statistics, is copied.

        Args:
            algorithm: holds the online modules.
            momentum: the share of the old value, in [0, 1].

        Raises:
            ValueError, TypeError: as `check`, and for a momentum out of range.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f'momentum must lie in [0, 1], got {momentum}')
        weights, buffers = self._pairs(algorithm)
        _check_precision(weights)
        torch._foreach_lerp_(*map(list, zip(*weights)), 1 - momentum)
        for target, online in buffers:
            target.copy_(online)

    @torch.no_grad()
    def copy_from(self, algorithm: nn.Module) -> None:
        """Start again as a copy of the online modules.

        Raises:
            ValueError, TypeError: as `check`, but half precision is allowed.
        """
        weights, buffers = self._pairs(algorithm)
        for target, online in (*weights, *buffers):
            target.copy_(online)

    @torch.no_grad()
    def distance(self, algorithm: nn.Module) -> Tensor:
        """How far the online weights are away: ``|online - target| / |online|``, over all.

        Args:
            algorithm: holds the online modules.

        Returns:
            A scalar.

        Raises:
            ValueError, TypeError: as `check`, but half precision is allowed.
        """
        weights, _ = self._pairs(algorithm)
        norms = [((online - target).norm(), online.norm()) for target, online in weights]
        apart, whole = (torch.stack(part).norm() for part in zip(*norms))
        return apart / whole

    def check(self, algorithm: nn.Module) -> None:
        """Find out, before training, whether this network can follow the online one.

        Raises:
            TypeError: if online weights have less than 32 bits: a step of
                ``(1 - momentum) * difference`` is then often smaller than the distance between
                two numbers, and the target would stand still. If they are sharded by FSDP:
                the target holds whole tensors.
            ValueError: if online modules have other names or shapes of weights than their
                copies here.
        """
        _check_precision(self._pairs(algorithm)[0])

    def _pairs(self, algorithm: nn.Module) -> tuple[list[tuple[Tensor, Tensor]], ...]:
        """(target, online) of all weights, and of all buffers."""
        weights, buffers = [], []
        for name, module in self.named_children():
            online = getattr(algorithm, name)
            params = dict(online.named_parameters(remove_duplicate=False))
            if any(_is_sharded(param) for param in params.values()):
                raise TypeError(
                    f'the target network cannot follow {name}, whose weights are sharded by '
                    'FSDP: the target holds whole tensors; use MMDistributedDataParallel'
                )
            wanted = params | dict(online.named_buffers(remove_duplicate=False))
            copied = dict(module.named_buffers(remove_duplicate=False))
            _check_alike(name, copied, wanted)
            weights += [(copied[key], params[key]) for key in params]
            buffers += [(copied[key], wanted[key]) for key in wanted if key not in params]
        return weights, buffers

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        self.prefix = prefix
        self.found = any(key.startswith(prefix) for key in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)


class HasTarget:
    """Mixin of algorithms that hold a `TargetNetwork` as ``target``.

    The target starts as a copy of the online network: when weights are initialised, and when
    a state dict without any ``target.*`` is loaded, such as converted weights of other code.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # mmengine's own `load_state_dict` calls such hooks too.
        self.register_load_state_dict_post_hook(_fill_target)

    def init_weights(self) -> None:
        """Initialise the online network, and the target as its copy.

        A target that comes from a checkpoint (``init_cfg=dict(type='Pretrained')`` of the
        algorithm) is kept. The second call changes nothing, as in `BaseModule`.
        """
        if self.is_init:
            return super().init_weights()
        self.target.found = False
        super().init_weights()
        if not self.target.found:
            self.target.copy_from(self)

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Refuse a Runner's training step if none of its hooks moves the target.

        mmengine calls this in every training step, within a distributed wrapper too, after
        the losses and before the backward pass. A loop of your own is not restricted: call
        ``model.target.follow(model, momentum)`` after each optimiser step.

        Raises:
            RuntimeError: naming the hook to add.
        """
        if self.target.mover is None and _runner_is_training():
            MessageHub.get_current_instance().pop_info('loop_stage')  # this error ends the run
            raise RuntimeError(
                f'{type(self).__name__} has a target network and no hook moves it: add '
                "dict(type='videomac_mm.TargetEMAHook') to custom_hooks. If a hook of your own "
                'calls model.target.follow, let its before_train set model.target.mover to its '
                'name'
            )
        return super().parse_losses(losses)


def _runner_is_training() -> bool:
    """As mmengine's `RuntimeInfoHook`, one of the default hooks, notes down."""
    return MessageHub.get_current_instance().get_info('loop_stage') == 'train'


def _fill_target(algorithm: nn.Module, incompatible_keys) -> None:
    """After loading: copy the online network if the state dict had no target.

    A post hook, because then all online weights are in place, whatever names the state dict
    had for them and however few they were.
    """
    target, missing = algorithm.target, incompatible_keys.missing_keys
    online_prefix = target.prefix.removesuffix('target.')
    if target.found or all(online_prefix + name in missing for name in target.state_dict()):
        return
    target.copy_from(algorithm)
    missing[:] = [name for name in missing if not name.startswith(target.prefix)]
    print_log(
        'The loaded weights have no target network. It starts as a copy of the online one.',
        logger='current',
    )


def _check_alike(name: str, copied: dict[str, Tensor], online: dict[str, Tensor]) -> None:
    problems = dict(
        missing=sorted(copied.keys() - online.keys()),
        unknown=sorted(online.keys() - copied.keys()),
        reshaped=[
            f'{key}: {tuple(copied[key].shape)} in the target, {tuple(value.shape)} online'
            for key, value in online.items()
            if key in copied and value.shape != copied[key].shape
        ],
    )
    if any(problems.values()):
        raise ValueError(
            f'the target network cannot follow {name}, which has changed since it was copied: '
            + ', '.join(f'{kind} {keys}' for kind, keys in problems.items() if keys)
        )


def _check_precision(weights: list[tuple[Tensor, Tensor]]) -> None:
    for dtype in {weight.dtype for pair in weights for weight in pair}:
        if torch.finfo(dtype).bits < 32:
            raise TypeError(
                f'a moving average needs weights in float32, got {dtype}: keep the weights in '
                'float32 and compute in half precision by autocast (--amp)'
            )


def _is_sharded(param: Tensor) -> bool:
    """By FSDP 2, whose parameters are `DTensor`, or FSDP 1, which marks them."""
    return hasattr(param, 'full_tensor') or getattr(param, '_fsdp_flattened', False)
