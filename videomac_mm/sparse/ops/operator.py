"""How this package registers its operators with torch."""

from collections.abc import Callable, Sequence

import torch
from torch import _C, Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = 'videomac_mm'
_library = torch.library.Library(NAMESPACE, 'FRAGMENT')

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def define(
    schema: str,
    default: Callable,
    *,
    check: Callable[..., None],
    fake: Callable,
    kernel: Callable | None = None,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
    autocast: Sequence[int] = (),
    flops: Callable[..., int] | None = None,
) -> Callable:
    """Register an operator ``videomac_mm::name``.

    Args:
        schema: ``name(arguments) -> results`` in torch's notation.
        default: the operator in plain torch, for all devices and types.
        check: raises for arguments that the operator does not take; all other functions may
            rely on it.
        fake: shapes, types and memory layouts of the results.
        kernel: a faster way on CPUs and GPUs, which returns NotImplemented for what it cannot do.
        backward, setup_context: as `torch.library.register_autograd`.
        autocast: positions of arguments that autocast brings to its type.
        flops: from the shapes of the arguments, for torch's FLOP counter.

    Returns:
        The operator.
    """
    name = schema.partition('(')[0]
    _library.define(schema)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default

    def checked_default(*args):
        check(*args)
        return default(*args)

    def checked_kernel(*args):
        check(*args)
        result = kernel(*args)
        return default(*args) if result is NotImplemented else result

    _library.impl(name, checked_default, 'CompositeExplicitAutograd')
    for key in ('CPU', 'CUDA') if kernel is not None else ():
        _library.impl(name, checked_kernel, key)

    def checked_fake(*args):
        check(*args)
        return fake(*args)

    torch.library.register_fake(f'{NAMESPACE}::{name}', checked_fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            f'{NAMESPACE}::{name}', backward, setup_context=setup_context, lib=_library
        )

    def under_autocast(device: str) -> Callable:
        def run(*args):
            dtype = torch.get_autocast_dtype(device)
            cast = [
                arg.to(dtype) if place in autocast and arg.dtype != torch.float64 else arg
                for place, arg in enumerate(args)
            ]
            with torch.autocast(device, enabled=False):  # the rest is the operator's own business
                return operator(*cast)

        return run

    for device in ('cpu', 'cuda'):
        _library.impl(name, under_autocast(device), f'Autocast{device.upper()}')
    if flops is not None:
        register_flop_formula(operator.overloadpacket)(flops)
    return operator


def check_tensor(
    name: str,
    tensor: Tensor | None,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype] = FLOATS,
    like: Tensor | None = None,
) -> None:
    """Raise unless a tensor has a shape (None: any size), one of some types, a device.

    Args:
        name: of the argument, for the message.
        tensor: may be None, which passes.
        shape: wanted, with None for sizes that are free.
        dtypes: allowed.
        like: a tensor on the wanted device.

    Raises:
        TypeError: for a type that is not among ``dtypes``.
        ValueError: for another shape or device.
    """
    if tensor is None:
        return
    if tensor.dtype not in dtypes:
        raise TypeError(f'{name} must have one of the types {tuple(dtypes)}, got {tensor.dtype}')
    fits = len(tensor.shape) == len(shape)
    if not fits or any(size not in (None, own) for size, own in zip(shape, tensor.shape)):
        wanted = ', '.join('any' if size is None else str(size) for size in shape)
        raise ValueError(f'{name} must have shape ({wanted}), got {tuple(tensor.shape)}')
    if like is not None and tensor.device != like.device:
        raise ValueError(f'{name} must be on {like.device}, got {tensor.device}')


def differentiable_gradients(
    function: Callable, args: Sequence, needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of a composition of torch's operations, to be differentiated once more.

    Args:
        function: of ``args``, to one tensor.
        args: tensors and other values.
        needed: for each, whether its gradient is wanted.
        grad: of the result.
    """
    with torch.enable_grad():
        out = function(*args)
    wanted = [arg for arg, is_needed in zip(args, needed) if is_needed]
    grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return tuple(next(grads) if is_needed else None for is_needed in needed)


def empty_maps(like: Tensor, *size: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for maps (or a weight) of a size, channels-last, of a tensor's type and device.

    Operators return tensors of their own, no views: autograd would refuse to change those in place.
    """
    kind = dict(dtype=dtype or like.dtype, device=like.device)
    return torch.empty(size, **kind, memory_format=torch.channels_last)


def own_maps(maps: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Maps in memory as that of `empty_maps`: themselves, or a copy."""
    _, channels, height, width = maps.shape
    strides = height * width * channels, 1, width * channels, channels
    fits = maps.dtype == (dtype or maps.dtype) and maps.stride() == strides
    if fits and not maps._is_view():
        return maps
    return empty_maps(maps, *maps.shape, dtype=dtype).copy_(maps)


def is_transformed() -> bool:
    """Whether `torch.func` or forward-mode differentiation is at work.

    Operators have rules for reverse mode alone, and forward mode would lose tangents without an
    error. Compositions of torch's own operations take their place then.
    """
    return _C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def composes(x: Tensor) -> bool:
    """Whether an operator without a GPU kernel gives way to its composition of torch's operations.

    Graph compilers make one kernel of the composition where there is none of ours.
    """
    compiles = torch.compiler.is_compiling() and x.device.type != 'cpu'
    return compiles or is_transformed()


def sum_type(x: Tensor) -> torch.dtype:
    """The type of sums over a tensor: its own, float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """A contiguous tensor, or None."""
    return tensor if tensor is None else tensor.contiguous()


def num_chunks(groups: int, rows: int) -> int:
    """Pieces of a group of rows, so that every thread has one."""
    return max(1, min(-(-torch.get_num_threads() // groups), rows))
