"""CMAE-V, and training in two processes, of which it asks most."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from tests.masks import expand, random_mask
from tests.test_models import test_videomae
from tests.test_models.test_videomae import GRID, assert_every_part_learns, randomise
from videomac_mm.engine import TargetEMAHook
from videomac_mm.models import CMAEV, GatheredBatchNorm1d
from videomac_mm.registry import MODELS

TEMPERATURE = 0.2


def parts(**changes: dict) -> dict:
    mlp = dict(
        type='mmpretrain.NonLinearNeck',
        hid_channels=10,
        out_channels=6,
        with_bias=True,
        with_last_bn=False,
        with_avg_pool=False,
        norm_cfg=dict(type='videomac_mm.GatheredBatchNorm1d', eps=1e-6),
    )
    cfg = dict(
        projector=dict(mlp, in_channels=12),
        contrast_head=dict(
            type='videomac_mm.ContrastHead',
            predictor=dict(mlp, in_channels=6),
            temperature=TEMPERATURE,
            loss=dict(type='mmpretrain.CrossEntropyLoss', loss_weight=2 * TEMPERATURE),
        ),
    )
    return test_videomae.parts(**cfg, **changes)


def build(**changes: dict) -> CMAEV:
    """A small model whose online and target weights have nothing in common."""
    model = randomise(CMAEV(**parts(**changes)))
    target = dict(model.target.named_buffers())
    for name, _ in model.named_parameters():
        if name in target:
            nn.init.normal_(target[name], std=0.3)
    return model


@pytest.fixture
def model() -> CMAEV:
    return build()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(3, 2, 3, 4, 24, 24, dtype=torch.float64)


@pytest.fixture
def mask() -> Tensor:
    return random_mask(3, GRID, 5)


def mlp(network: nn.Module, x: Tensor) -> Tensor:
    """A projector or predictor with the statistics of the batch."""
    x = F.linear(x, network.fc0.weight, network.fc0.bias)
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()
    x = F.relu(x * network.bn0.weight + network.bn0.bias)
    return F.linear(x, network.fc1.weight)


def test_loss__is_that_of_videomae_and_a_hand_computed_contrast(model, inputs, mask):
    losses = model.loss(inputs, mask=mask)
    assert list(losses) == ['loss_pixel', 'loss_contrast']

    videomae = test_videomae.build()
    state = {key: value for key, value in model.state_dict().items() if key[:4] in ('back', 'neck')}
    videomae.load_state_dict(state)
    wanted = videomae.loss(inputs[:, :1], mask=mask)['loss_pixel']
    torch.testing.assert_close(losses['loss_pixel'], wanted)

    def tokens(backbone: nn.Module, clips: Tensor) -> Tensor:
        x = backbone.patch_embed(clips)[0] + backbone.pos_embed
        return x if clips is later else x[~mask.flatten(1)].view(3, 5, -1)

    first, later = inputs.unbind(1)
    vectors = []
    for network, clips in ((model, first), (model.target, later)):
        x = tokens(network.backbone, clips)
        for block in network.backbone.blocks:
            x = block(x)
        vectors.append(mlp(network.projector, network.backbone.norm(x).mean(1)))
    query, key = mlp(model.contrast_head.predictor, vectors[0]), vectors[1]
    similarity = torch.stack(
        [torch.stack([torch.cosine_similarity(q, k, 0) for k in key]) for q in query]
    )
    scores = (similarity / TEMPERATURE).exp()
    wanted = -2 * TEMPERATURE * (scores.diag() / scores.sum(1)).log().mean()
    torch.testing.assert_close(losses['loss_contrast'], wanted)


def test_contrast__is_small_where_videos_are_told_apart(model):
    # A query is compared with the key of its own video first.
    head = model.contrast_head
    head.predictor.forward = lambda x: x
    keys = torch.eye(6, dtype=torch.float64)
    assert head.loss(keys, keys) < 0.02 < 1 < head.loss(keys, keys.roll(1, 0))


def test_contrast__is_that_of_mmpretrain(model):
    ours, theirs = (
        model.contrast_head,
        MODELS.build({**parts()['contrast_head'], 'type': 'mmpretrain.MoCoV3Head'}).double(),
    )
    theirs.load_state_dict(ours.state_dict())
    query = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    key = torch.randn(5, 6, dtype=torch.float64)
    results = []
    for head in (ours, theirs):
        loss = head.loss(query, key)
        results.append([loss, *torch.autograd.grad(loss, [query, *head.parameters()])])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('initialised', [False, True])
def test_loss__teaches_every_parameter(model, initialised, inputs):
    if initialised:
        model.init_weights()
    model.train()
    sum(model(inputs, mode='loss').values()).backward()
    assert_every_part_learns(model)
    assert not any(name.startswith('target.') for name, _ in model.named_parameters())
    assert not any(weight.requires_grad for weight in model.target.buffers())
    assert all(weight.grad is None for weight in model.target.buffers())


def test_loss__hidden_pixels_reach_the_target_values_only(model, inputs, mask):
    hidden = torch.stack([expand(mask, (4, 24, 24)), expand(mask & False, (4, 24, 24))], 1)
    results = []
    for clips in (inputs, inputs.where(~hidden, 5 * inputs + 7)):
        losses = model.loss(clips, mask=mask)
        grads = torch.autograd.grad(sum(losses.values()), list(model.parameters()))
        results.append([*losses.values(), *grads])
    for first, second in zip(*results):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-6)
    losses = model.loss(inputs.masked_fill(hidden, torch.nan), mask=mask)
    assert losses['loss_contrast'] == results[0][1] and losses['loss_pixel'].isnan()


def test_loss__later_clips_are_keys_only_and_learn_nothing(model, inputs, mask):
    inputs.requires_grad_()
    losses = model.loss(inputs, mask=mask)
    (grad,) = torch.autograd.grad(losses['loss_contrast'], inputs, retain_graph=True)
    hidden = expand(mask, (4, 24, 24)).expand(-1, 3, -1, -1, -1)
    assert grad[:, 0][~hidden].abs().sum() > 0
    assert not grad[:, 0][hidden].any() and not grad[:, 1].any()
    other = inputs.detach().clone()
    other[:, 1] = other[:, 1].flip(0)
    changed = model.loss(other, mask=mask)
    assert changed['loss_pixel'] == losses['loss_pixel']
    assert changed['loss_contrast'] != losses['loss_contrast']


def test_loss__does_not_depend_on_the_order_of_videos(model, inputs, mask):
    losses = model.loss(inputs, mask=mask)
    turned = model.loss(inputs.roll(1, 0), mask=mask.roll(1, 0))
    for name, loss in losses.items():
        torch.testing.assert_close(turned[name], loss)


def test_autocast__computes_losses_in_float32(model, inputs, mask):
    model.float().init_weights()
    wanted = model.loss(inputs.float(), mask=mask)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(inputs.float(), mask=mask)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, wanted[name], rtol=0.05, atol=0)
    sum(losses.values()).backward()
    assert_every_part_learns(model)


# --------------------------------------------------------------------- target


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """All but the statistics of batch norms."""
    state = network.state_dict()
    names = 'running_mean', 'running_var', 'num_batches_tracked'
    return {key: value.clone() for key, value in state.items() if not key.endswith(names)}


def test_target__starts_equal_and_is_saved(model):
    model.init_weights()
    state = model.state_dict()
    target = [name for name in state if name.startswith('target.')]
    parts = ('backbone.', 'projector.')
    assert {name[7:] for name in target} == {name for name in state if name.startswith(parts)}
    for name in target:
        assert torch.equal(state[name], state[name[7:]]), name


def test_target__stays_until_it_is_told_to_follow(model, inputs):
    before = weights_of(model.target)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    hook = TargetEMAHook(momentum=0.9, end_momentum=0.9)
    wrapper = OptimWrapper(optimizer)
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=3, max_iters=9)
    hook.before_train(runner)
    sum(model.loss(inputs).values()).backward()
    optimizer.step()
    for name, value in weights_of(model.target).items():
        assert torch.equal(value, before[name]), name

    hook.after_train_iter(runner)
    online = dict(model.named_parameters())
    for name, value in weights_of(model.target).items():
        wanted = before[name]
        if name in online:
            wanted = 0.9 * wanted + 0.1 * online[name]
        torch.testing.assert_close(value, wanted)
    ours, theirs = model.projector.bn0, model.target.projector.bn0
    assert ours.running_mean.abs().sum() > 0 and ours.num_batches_tracked == 1
    for name, value in ours.named_buffers():
        assert torch.equal(value, getattr(theirs, name)), name


def test_target__projector_normalises_by_the_batch_in_training_only(model, inputs, mask):
    bn = model.target.projector.bn0
    modules = {name: module for name, module in model.target.named_modules()}
    for mode in (True, False):
        model.train(mode)
        for name, module in modules.items():
            assert module.training == (mode and name.startswith('projector')), name
        bn.running_mean.fill_(1e3)
        far_off = model.loss(inputs, mask=mask)['loss_contrast']
        bn.running_mean.zero_()
        moved = (model.loss(inputs, mask=mask)['loss_contrast'] - far_off).abs()
        assert (moved < 1e-9) if mode else (moved > 1e-6)


def test_target__copies_of_the_model_have_their_own(model, inputs, mask):
    other = copy.deepcopy(model)
    assert other.loss(inputs, mask=mask) == model.loss(inputs, mask=mask)
    other.target.follow(other, momentum=0.5)
    assert not torch.equal(other.target.backbone.norm.weight, model.target.backbone.norm.weight)


# ------------------------------------------------------- what it is asked for


def test_reconstruct__shows_the_first_clips(model, inputs, mask):
    pictures = model.reconstruct(inputs, mask)
    assert list(pictures) == ['original', 'masked', 'predicted']
    assert {picture.shape for picture in pictures.values()} == {(3, 3, 4, 24, 24)}
    wanted = test_videomae.VideoMAE.reconstruct(model, inputs[:, :1], mask)
    for name, picture in pictures.items():
        assert torch.equal(picture, wanted[name])
    one_clip = model.reconstruct(inputs[:, :1], mask)  # as ReconstructionHook gives them
    assert torch.equal(one_clip['predicted'], pictures['predicted'])


def test_extract_feat__is_that_of_the_online_backbone(inputs):
    model = build(backbone=dict(return_feat_map=True))
    maps = model.extract_feat(inputs)
    assert maps.shape == (6, 12, *GRID)
    assert torch.equal(maps[2:4], model.backbone(inputs[1]))


def test_bad_inputs__are_named(model, inputs, mask):
    wanted = r'two clips of each video \(B, 2, C, T, H, W\).*'
    with pytest.raises(ValueError, match=wanted + r'\(3, 1, 3, 4, 24, 24\).*SampleClips'):
        model.loss(inputs[:, :1])
    with pytest.raises(ValueError, match=wanted + r'\(3, 3, 4, 24, 24\)'):
        model.loss(inputs[:, 0])
    with pytest.raises(ValueError, match=r'shape \(3, 2, 3, 3\), got \(2, 2, 3, 3\)'):
        model.loss(inputs, mask=mask[1:])
    with pytest.raises(ValueError, match='use_mean_pooling=False'):
        build(backbone=dict(use_mean_pooling=True))
    with pytest.raises(ValueError, match=r'compares \(192,\)'):
        build(head=dict(tubelet_size=1))


# ---------------------------------------------------------------- batch norms


def test_gathered_batch_norm__alone_is_torchs():
    ours, theirs = (kind(5, eps=1e-3) for kind in (GatheredBatchNorm1d, nn.BatchNorm1d))
    x = torch.randn(7, 5) + 3
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), theirs.train(mode)(x))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


# -------------------------------------------------------------- two processes

NUM_STEPS = 3


def train(name: str, rank: int = 0, num_processes: int = 1) -> dict[str, Tensor]:
    """Train on a share of each batch; returns all that the model then holds."""
    torch.manual_seed(0)  # the same weights and batches in every process
    if name == 'CMAE-V':
        model, num_clips = build(), 2
    else:
        model, num_clips = test_videomae.build(name), 1
    model.train()
    network = model
    if num_processes > 1:
        network = MMDistributedDataParallel(model, broadcast_buffers=False)  # as Runner does
    wrapper = SimpleNamespace(should_update=lambda: True, _accumulative_counts=1)
    runner = SimpleNamespace(model=network, optim_wrapper=wrapper, iter=0, max_iters=NUM_STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(NUM_STEPS):
        inputs = torch.randn(4, num_clips, 3, 4, 24, 24, dtype=torch.float64)
        mask = random_mask(4, GRID, 5, seed=step)
        share = slice(rank * 4 // num_processes, (rank + 1) * 4 // num_processes)
        model.mask_generator = lambda clips, mask=mask[share]: mask
        optimizer.zero_grad()
        sum(network(inputs[share], mode='loss').values()).backward()
        optimizer.step()
        if name == 'CMAE-V':
            runner.iter = step
            TargetEMAHook(momentum=0.9, end_momentum=0.9).after_train_iter(runner)
    return model.state_dict()


def share_of_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    for name in ALGORITHMS:
        torch.save(train(name, rank, 2), f'{folder}/{name}-{rank}.pth')
    torch.distributed.destroy_process_group()


ALGORITHMS = [*test_videomae.VARIANTS, 'CMAE-V']


@pytest.fixture(scope='module')
def trained_by_two(tmp_path_factory) -> Path:
    if not torch.distributed.is_gloo_available():
        pytest.skip('torch without gloo')
    folder = tmp_path_factory.mktemp('two')
    torch.multiprocessing.spawn(share_of_a_process, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize('name', ALGORITHMS)
def test_two_processes__train_as_one_on_the_whole_batch(name, trained_by_two):
    wanted = train(name)
    for rank in range(2):
        state = torch.load(trained_by_two / f'{name}-{rank}.pth', weights_only=True)
        assert list(state) == list(wanted)
        for key, value in wanted.items():
            torch.testing.assert_close(
                state[key], value, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f'{key}: {text}'
            )
