"""How the target network starts, moves, and what it refuses."""

import copy
import pickle

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from tests.test_models import test_cmae_v
from videomac_mm.models import TargetNetwork, VideoMAC


def build(**kwargs) -> VideoMAC:
    arch = dict(depths=[1, 1], channels=[4, 6])
    return VideoMAC(
        dict(type='videomac_mm.SparseConvNeXt', arch=arch, stage_norm='inline'),
        dict(type='videomac_mm.MaskTokenDecoder', in_channels=6, embed_dims=4, patch_size=8),
        dict(type='videomac_mm.PixelHead', patch_size=8),
        mask_generator=dict(type='videomac_mm.RandomPatchMask', patch_size=8),
        data_preprocessor=dict(type='mmaction.ActionDataPreprocessor', format_shape='NCTHW'),
        **kwargs,
    )


BUILDERS = {'videomac': build, 'cmae-v': lambda: test_cmae_v.build().float()}


def randomise(model: nn.Module) -> nn.Module:
    """Weights that no initialisation gives, and a target unlike the online network."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in (*model.parameters(), *model.target.buffers()):
            if value.is_floating_point():
                value.normal_()
    return model


def online_of(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint without a target network holds."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith('target.')}


def assert_target_is_online(model: nn.Module) -> None:
    state = model.state_dict()
    names = [name for name in state if name.startswith('target.')]
    assert names
    for name in names:
        assert torch.equal(state[name], state[name.removeprefix('target.')]), name


@pytest.fixture
def model() -> VideoMAC:
    return randomise(build())


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


# ------------------------------------------------------------------------ the start


@pytest.mark.parametrize('name', BUILDERS)
def test_start__is_a_copy_of_the_initialised_online_network(name):
    model = randomise(BUILDERS[name]())
    model.init_weights()
    assert_target_is_online(model)
    shared = {p.data_ptr() for p in model.parameters()}
    assert not shared & {b.data_ptr() for b in model.target.buffers()}


def test_start__is_a_copy_from_construction_on():
    assert_target_is_online(build())


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('how', ['torch', 'mmengine', 'revised keys'])
@pytest.mark.parametrize('name', BUILDERS)
def test_start__weights_without_a_target_fill_it(name, how, wrapped, tmp_path, request):
    weights = online_of(randomise(BUILDERS[name]()))
    model = BUILDERS[name]()
    loaded = model
    if wrapped:
        request.getfixturevalue('one_process')
        loaded = MMDistributedDataParallel(model)
    path = str(tmp_path / 'weights.pth')
    if how == 'torch':
        prefix = 'module.' if wrapped else ''
        result = loaded.load_state_dict({prefix + k: v for k, v in weights.items()}, strict=True)
        assert result.missing_keys == result.unexpected_keys == []
    elif how == 'mmengine':
        torch.save(dict(state_dict={f'module.{k}': v for k, v in weights.items()}), path)
        load_checkpoint(loaded, path, strict=True)
    else:
        torch.save({f'student.{key}': value for key, value in weights.items()}, path)
        load_checkpoint(loaded, path, strict=True, revise_keys=[(r'^student\.', '')])
    for key, value in weights.items():
        assert torch.equal(model.state_dict()[key], value), key
    assert_target_is_online(model)


def test_start__a_backbone_alone_leaves_new_parts_equal_too(model):
    backbone = {k: v for k, v in online_of(model).items() if k.startswith('backbone.')}
    other = randomise(build())
    neck = other.neck.state_dict()
    result = other.load_state_dict(backbone, strict=False)
    assert result.missing_keys and all(k.startswith('neck.') for k in result.missing_keys)
    assert_target_is_online(other)
    assert all(torch.equal(value, other.neck.state_dict()[key]) for key, value in neck.items())


def test_start__inside_of_another_module(model):
    weights = {f'inner.{key}': value for key, value in online_of(model).items()}
    outer = nn.Module()
    outer.inner = build()
    outer.load_state_dict(weights, strict=True)
    assert_target_is_online(outer.inner)


def test_start__follows_a_backbone_that_renames_its_keys(model):
    """The names in the file need not be those of the model."""

    def rename(state_dict, prefix, *args):
        for key in list(state_dict):
            state_dict[key.replace('old_', '')] = state_dict.pop(key)

    weights = {k.replace('backbone.', 'backbone.old_'): v for k, v in online_of(model).items()}
    other = build()
    other.backbone._register_load_state_dict_pre_hook(rename)
    load = other.load_state_dict(weights, strict=False)
    assert not load.missing_keys
    assert_target_is_online(other)
    assert torch.equal(other.target.neck.mask_token, model.neck.mask_token)


def test_start__a_target_in_the_file_is_taken_and_never_mixed(model):
    weights = model.state_dict()
    other = build()
    other.load_state_dict(weights, strict=True)
    for key, value in weights.items():
        assert torch.equal(other.state_dict()[key], value), key

    part = {k: v for k, v in weights.items() if not k.startswith('target.neck.')}
    other = randomise(build())
    before = {key: value.clone() for key, value in other.target.neck.state_dict().items()}
    result = other.load_state_dict(part, strict=False)
    assert set(result.missing_keys) == {f'target.neck.{key}' for key in before}
    for key, value in before.items():
        assert torch.equal(other.target.neck.state_dict()[key], value), key
    with pytest.raises(RuntimeError, match=r'Missing key.*target\.neck'):
        other.load_state_dict(part, strict=True)


def test_start__a_file_of_something_else_changes_nothing(model):
    before = copy.deepcopy(model.state_dict())
    result = model.load_state_dict({'features.weight': torch.ones(1)}, strict=False)
    assert set(result.missing_keys) == set(before)
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value), key


def test_start__says_that_the_target_was_filled(model, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'videomac_mm.models.target_network.print_log', lambda text, **_: lines.append(text)
    )
    other = build()
    other.load_state_dict(model.state_dict())
    assert lines == []
    other.load_state_dict(online_of(model))
    assert len(lines) == 1 and 'copy of the online' in lines[0]


@pytest.mark.parametrize('with_target', [False, True])
def test_start__pretrained_weights_of_the_algorithm(model, with_target, tmp_path):
    weights = model.state_dict() if with_target else online_of(model)
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    other = build(init_cfg=pretrained)
    other.init_weights()
    for key, value in weights.items():
        assert torch.equal(other.state_dict()[key], value), key
    if not with_target:
        assert_target_is_online(other)


def test_start__the_second_initialisation_changes_nothing():
    model = build()
    model.init_weights()
    randomise(model)
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value), key


def test_start__copies_of_the_model_fill_their_own_target(model):
    weights = online_of(randomise(build()))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = copy.deepcopy(model.state_dict())
        other.load_state_dict(weights)
        assert_target_is_online(other)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_follow__refuses_half_precision(model, dtype):
    model.to(dtype)
    with pytest.raises(TypeError, match=rf'float32, got {dtype}.*--amp'):
        model.target.follow(model, momentum=0.996)
    model.target.copy_from(model)  # exact in any precision
    assert_target_is_online(model)


@pytest.mark.parametrize('momentum', [-0.1, 1.1])
def test_follow__refuses_a_momentum_out_of_range(model, momentum):
    with pytest.raises(ValueError, match=rf'\[0, 1\], got {momentum}'):
        model.target.follow(model, momentum)


def test_follow__names_weights_that_do_not_correspond(model):
    before = copy.deepcopy(model.target.state_dict())
    model.neck.pred = nn.Linear(4, 7, bias=False)
    model.neck.adapter = nn.Linear(4, 4, bias=False)
    with pytest.raises(ValueError) as raised:
        model.target.follow(model, momentum=0.5)
    text = str(raised.value)
    assert 'neck' in text and "missing ['pred.bias']" in text
    assert "unknown ['adapter.weight']" in text
    assert 'pred.weight: (192, 4' in text and 'in the target, (7, 4) online' in text
    for key, value in before.items():
        assert torch.equal(model.target.state_dict()[key], value), key


def test_follow__moves_weights_with_two_names_once():
    online = nn.Module()
    online.net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    online.net[1].weight = online.net[0].weight
    target = TargetNetwork(net=online.net)
    start = online.net[0].weight.detach().clone()
    with torch.no_grad():
        online.net[0].weight += 1
    target.follow(online, momentum=0.75)
    for layer in target.net:
        torch.testing.assert_close(layer.weight, start + 0.25)


def test_follow__refuses_weights_sharded_by_fsdp(model, one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh = init_device_mesh('cpu', (1,))
    weight = model.neck.proj.weight
    model.neck.proj.weight = nn.Parameter(distribute_tensor(weight.data, mesh))
    assert isinstance(model.neck.proj.weight, DTensor)
    for move in (lambda: model.target.follow(model, 0.5), lambda: model.target.copy_from(model)):
        with pytest.raises(TypeError, match='neck, whose weights are sharded by FSDP'):
            move()


@pytest.mark.parametrize('original', [False, True])
def test_follow__refuses_weights_flattened_by_fsdp(model, one_process, original):
    fsdp = pytest.importorskip('torch.distributed.fsdp').FullyShardedDataParallel
    try:
        device = torch.device('cpu')
        model.neck = fsdp(model.neck, use_orig_params=original, device_id=device)
    except RuntimeError as err:
        pytest.skip(f'FSDP of this torch does without CPUs: {err}')
    with pytest.raises(TypeError, match='neck, whose weights are sharded by FSDP'):
        model.target.follow(model, momentum=0.5)


# ------------------------------------------------------- steps outside of a Runner


def test_train_step__of_a_loop_of_your_own_is_not_restricted(model):
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    clips = [torch.randint(256, (1, 3, 2, 32, 24), dtype=torch.uint8) for _ in range(2)]
    before = {name: value.clone() for name, value in model.target.state_dict().items()}
    for _ in range(2):
        losses = model.train_step(dict(inputs=clips, data_samples=None), optimizer)
        assert losses['loss'].isfinite()
        model.target.follow(model, momentum=0.9)
    after = model.target.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize('wrapped', [False, True])
def test_train_step__of_a_runner_needs_a_hook_that_moves_the_target(model, wrapped, request):
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    clips = [torch.randint(256, (1, 3, 2, 32, 24), dtype=torch.uint8) for _ in range(2)]
    batch = dict(inputs=clips, data_samples=None)
    trained = model
    if wrapped:
        request.getfixturevalue('one_process')
        trained = MMDistributedDataParallel(model)
    hub = MessageHub.get_current_instance()
    hub.update_info('loop_stage', 'train')  # as while a Runner trains
    try:
        model.target.mover = 'MyHook'
        trained.train_step(batch, optimizer)
        model.target.mover = None
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(RuntimeError, match=r"VideoMAC.*'videomac_mm\.TargetEMAHook'"):
            trained.train_step(batch, optimizer)
        for key, value in before.items():
            assert torch.equal(model.state_dict()[key], value), key
        assert hub.get_info('loop_stage') is None
    finally:
        hub.update_info('loop_stage', None)
