"""Do the step again that `NonFiniteHook` saved, and show where its numbers stop being finite.

Prints the losses, the first module whose output is not finite although its inputs are, and the
parameters whose gradients are not. Ends with 0 if the failure shows again, with 1 if it does not.
"""

import argparse
from typing import Any

import torch
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import videomac_mm  # noqa: F401  repairs the stack before a config imports anything
from videomac_mm.randomness import set_rng_state
from videomac_mm.registry import MODELS


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of floats in nested containers."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, (list, tuple, type({}.values()))):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []


def is_finite(value: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_in(value))


def watch(model: nn.Module) -> list[str]:
    """Names of the modules that turn finite inputs into others, in the order of their ends."""
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        weights = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not is_finite(output) and is_finite(inputs):
            of_weights = '' if is_finite(weights) else ' (its own weights are not finite)'
            found.append(f'{name}: {type(module).__name__}{of_weights}')

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(
                lambda module, inputs, output, name=name: look(name, module, inputs, output)
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('file', help='non_finite_<iteration>_rank<rank>.pth of a work dir')
    parser.add_argument('--device', default='cpu', help='cpu or cuda; masks and data are the same')
    args = parser.parse_args()
    step = torch.load(args.file, map_location='cpu', weights_only=True)
    cfg = Config.fromstring(step['config'], '.py')
    init_default_scope(cfg.get('default_scope', 'videomac_mm'))
    model = MODELS.build(cfg.model)
    model.load_state_dict(step['state_dict'])
    model.to(args.device).train()
    found = watch(model)
    if step['rng'] is not None:
        set_rng_state(step['rng'])
    if hasattr(model, 'set_step'):
        model.set_step(step['seed'], step['iteration'] - 1, step['rank'])
    print(f'iteration {step["iteration"]}, rank {step["rank"]} of {step["world_size"]}')
    if not is_finite(step['state_dict']):
        print('the weights are not finite')

    inputs = step['inputs']
    each = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs  # packed crops
    samples = [ActionDataSample() for _ in each]
    dtype = getattr(torch, step['dtype']) if step['dtype'] else None
    with torch.autocast(args.device, dtype=dtype, enabled=step['amp']):
        data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), True)
        print(f'inputs are {"" if is_finite(data["inputs"]) else "not "}finite')
        losses = model(**data, mode='loss')
    total, log_vars = model.parse_losses(losses)
    for name, value in log_vars.items():
        print(f'{name}: {float(value)}')
    total.backward()
    if found:
        print(f'first module with an output that is not finite: {found[0]}')
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, grad in grads.items() if not bool(grad.isfinite().all())]
    print(f'parameters with gradients that are not finite: {len(bad)} of {len(grads)}')
    for name in bad[:20]:
        print(f'  {name}')
    return 0 if bad or not is_finite(log_vars) else 1


if __name__ == '__main__':
    raise SystemExit(main())
