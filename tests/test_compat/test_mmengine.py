"""Each repair of mmengine: training on CPUs works through its ordinary ways."""

import multiprocessing

import pytest
import torch
from mmengine.optim import AmpOptimWrapper

from videomac_mm.compat import mmengine as repairs


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(repairs, 'get_device', lambda: 'cpu')


def test_pytorch_launcher__opens_gloo_and_wraps_on_cpu(on_cpu, monkeypatch):
    from mmengine.dist import init_dist
    from mmengine.model import MMDistributedDataParallel

    environ = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=0)
    for key, value in environ.items():
        monkeypatch.setenv(key, str(value))
    start_method = multiprocessing.get_start_method(allow_none=True)
    init_dist('pytorch', backend='nccl', timeout=60)
    try:
        assert torch.distributed.get_backend() == 'gloo'
        # What Runner.wrap_model passes.
        model = MMDistributedDataParallel(
            module=torch.nn.Linear(2, 1), device_ids=[0], broadcast_buffers=False
        )
        model(torch.ones(3, 2)).sum().backward()
        assert model.module.weight.grad.tolist() == [[3.0, 3.0]]
    finally:
        torch.distributed.destroy_process_group()
        multiprocessing.set_start_method(start_method, force=True)


@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16'])
def test_amp_optim_wrapper__is_bfloat16_on_cpu(on_cpu, dtype):
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    wrapper = AmpOptimWrapper(
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        dtype=dtype,
        accumulative_counts=2,
        clip_grad=dict(max_norm=100.0),
    )
    wrapper.initialize_count_status(model, 0, 4)
    for _ in range(2):
        with wrapper.optim_context(model):
            output = model(torch.ones(1, 2))
        assert output.dtype == torch.bfloat16
        wrapper.update_params(output.float().sum())
    # One step on the mean of two gradients of ones.
    assert model.weight.tolist() == [[0.5, 0.5]]
    wrapper.load_state_dict(wrapper.state_dict())
