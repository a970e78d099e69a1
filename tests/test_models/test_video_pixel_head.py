import pytest
import torch
from torch import Tensor

from tests.masks import expand, random_mask
from videomac_mm.models import VideoPixelHead

PATCH = 4
SIZE = (2, 3, 2)  # of the grid (t, h, w)
BOTH = ('pixel', 'motion')


def head(targets: tuple[str, ...] = BOTH, **kwargs) -> VideoPixelHead:
    return VideoPixelHead(**{'patch_size': PATCH, 'targets': targets, **kwargs})


def clips(frames: int = 2) -> Tensor:
    """(2, 3, T, 12, 8) in [0, 1], of tubelets of so many frames."""
    return torch.rand(2, 3, SIZE[0] * frames, SIZE[1] * PATCH, SIZE[2] * PATCH).double()


@pytest.fixture
def mask() -> Tensor:
    return random_mask(2, SIZE, 5)


def by_hand(
    clips: Tensor,
    mask: Tensor,
    motion: bool = False,
    norm: str | None = None,
    absolute: bool = True,
    frames: int = 2,
) -> Tensor:
    """The target (B, n_hidden, P), one hidden tubelet after the other."""
    rows = []
    for b, t, y, x in mask.nonzero().tolist():
        cube = clips[b, :, t * frames : (t + 1) * frames]
        cube = cube[:, :, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH]
        if motion:
            steps = [cube[:, i + 1] - cube[:, i] for i in range(frames - 1)]
            cube = torch.stack(steps, 1)
            cube = cube.abs() if absolute else cube
        channels = cube.flatten(1)
        if norm == 'channel':
            channels = channels - channels.mean(1, keepdim=True)
            count = channels.shape[1]
            deviation = (channels.square().sum(1, keepdim=True) / (count - 1)).sqrt()
            channels = channels / (deviation + 1e-6)
        elif norm == 'joint':
            channels = channels - channels.mean()
            variance = channels.square().sum() / (channels.numel() - 1)
            channels = channels / (variance + 1e-6).sqrt()
        rows.append(channels.T.flatten())  # the channel runs fastest
    return torch.stack(rows).unflatten(0, (len(clips), -1))


def assert_target(head: VideoPixelHead, clips: Tensor, mask: Tensor, *targets: Tensor) -> None:
    """The target itself costs nothing, and what differs from it the mean square of that."""
    losses = head.loss(targets, clips, mask)
    assert list(losses) == [f'loss_{name}' for name in head.targets]
    for loss in losses.values():
        torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-20)
    noise = [torch.randn_like(target) for target in targets]
    preds = [target + error for target, error in zip(targets, noise)]
    for loss, error in zip(head.loss(preds, clips, mask).values(), noise):
        torch.testing.assert_close(loss, error.square().mean())


@pytest.mark.parametrize('norm', ['channel', 'joint', None])
@pytest.mark.parametrize('frames', [1, 2, 3])
def test_pixels__are_hand_computed(norm, frames, mask):
    x = clips(frames)
    target = by_hand(x, mask, norm=norm, frames=frames)
    assert_target(head(('pixel',), norm=norm, tubelet_size=frames), x, mask, target)


@pytest.mark.parametrize('norm', ['channel', 'joint', None])
@pytest.mark.parametrize('absolute', [True, False])
@pytest.mark.parametrize('frames', [2, 3])
def test_motion__is_hand_computed(norm, absolute, frames, mask):
    x = clips(frames)
    target = by_hand(x, mask, True, norm, absolute, frames)
    one = head(('motion',), norm=norm, motion_abs=absolute, tubelet_size=frames)
    assert_target(one, x, mask, target)
    raw = by_hand(x, mask, True, None, absolute, frames)
    one = head(('motion',), norm=norm, motion_abs=absolute, tubelet_size=frames, motion_norm=False)
    assert_target(one, x, mask, raw)


@pytest.mark.parametrize('targets', [BOTH, BOTH[::-1]])
def test_targets__come_in_the_order_of_the_predictions(targets, mask):
    x = clips()
    both = head(targets)
    values = dict(
        pixel=by_hand(x, mask, norm='channel'), motion=by_hand(x, mask, True, norm='channel')
    )
    assert both.pred_dims == tuple(values[name].shape[2] for name in targets)
    assert_target(both, x, mask, *(values[name] for name in targets))


def test_motion__of_what_stands_still_is_exactly_zero(mask):
    still = clips()[:, :, :1].expand(-1, -1, 4, -1, -1)
    pred = torch.zeros(2, 7, 48, dtype=torch.float64, requires_grad=True)
    (loss,) = head(('motion',)).loss([pred], still, mask).values()
    assert loss == 0
    (grad,) = torch.autograd.grad(loss, pred)
    assert not grad.any()


@pytest.mark.parametrize('value', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('norm', ['channel', 'joint'])
def test_one_colour__gives_finite_targets(norm, value, mask):
    plain = torch.full((2, 3, 4, 12, 8), value)
    preds = torch.zeros(2, 7, 96), torch.zeros(2, 7, 48)
    losses = head(norm=norm).loss(preds, plain, mask)
    assert losses['loss_pixel'] < 0.02 and losses['loss_motion'] == 0


@pytest.mark.parametrize('norm', ['channel', 'joint'])
def test_predicting_the_mean__costs_about_one(norm, mask):
    preds = torch.zeros(2, 7, 96).double(), torch.zeros(2, 7, 48).double()
    for loss in head(norm=norm).loss(preds, clips(), mask).values():
        assert loss.item() == pytest.approx(1, abs=0.08)  # (n - 1) / n, of few pixels


def test_visible_pixels__are_not_scored(mask):
    x = clips()
    preds = torch.randn(2, 7, 96).double(), torch.randn(2, 7, 48).double()
    other = x.masked_fill(~expand(mask, x.shape[2:]), torch.nan)
    assert head().loss(preds, other, mask) == head().loss(preds, x, mask)


def test_loss_weights__scale_their_own_loss(mask):
    x = clips()
    preds = torch.randn(2, 7, 96).double(), torch.randn(2, 7, 48).double()
    plain, weighted = head().loss(preds, x, mask), head(loss_weights=(3, 0.5)).loss(preds, x, mask)
    torch.testing.assert_close(weighted['loss_pixel'], 3 * plain['loss_pixel'])
    torch.testing.assert_close(weighted['loss_motion'], plain['loss_motion'] / 2)


def test_loss__of_another_kind_can_be_chosen(mask):
    x = clips()
    pred = torch.randn(2, 7, 96, dtype=torch.float64)
    loss = dict(type='mmpretrain.PixelReconstructionLoss', criterion='L1')
    (got,) = head(('pixel',), norm=None, loss=loss).loss([pred], x, mask).values()
    torch.testing.assert_close(got, (pred - by_hand(x, mask)).abs().mean())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision__gives_a_float32_loss(dtype, mask):
    # The square of the large ones is beyond float16, the small ones' errors are below it.
    x = clips().float()
    target = by_hand(x, mask, norm='channel')
    for pred in (300 * torch.randn(2, 7, 96).to(dtype), target.to(dtype)):
        for enabled in (True, False):
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                (loss,) = head(('pixel',)).loss([pred], x, mask).values()
            assert loss.dtype == torch.float32
            torch.testing.assert_close(
                loss, (pred.float() - target).square().mean(), rtol=1e-3, atol=0
            )


# ------------------------------------------------------------------- pictures


def perfect(x: Tensor, mask: Tensor, norm: str | None, absolute: bool, frames: int) -> list[Tensor]:
    return [by_hand(x, mask, motion, norm, absolute, frames) for motion in (False, True)]


@pytest.mark.parametrize('norm', ['channel', 'joint', None])
@pytest.mark.parametrize('absolute', [True, False])
@pytest.mark.parametrize('frames', [2, 3])
def test_pictures__of_perfect_predictions_are_the_clip(norm, absolute, frames, mask):
    x = clips(frames)
    one = head(norm=norm, motion_abs=absolute, tubelet_size=frames)
    pictures = one.pictures(perfect(x, mask, norm, absolute, frames), x, mask)
    assert list(pictures) == ['original', 'masked', 'predicted', 'motion', 'predicted_motion']
    assert {picture.shape for picture in pictures.values()} == {x.shape}
    assert torch.equal(pictures['original'], x)
    torch.testing.assert_close(pictures['predicted'], x)
    # What changes from each frame to the next; the last of a tubelet shows the change before.
    firsts = [t if t % frames < frames - 1 else t - 1 for t in range(x.shape[2])]
    change = torch.stack([x[:, :, t + 1] - x[:, :, t] for t in firsts], 2)
    change = change / change.abs().amax((1, 2, 3, 4), keepdim=True)
    want = change.abs() if absolute else 0.5 + change / 2
    torch.testing.assert_close(pictures['motion'], want)
    torch.testing.assert_close(pictures['predicted_motion'], want)


@pytest.mark.parametrize('norm', ['channel', None])
@pytest.mark.parametrize('motion_norm', [True, False])
def test_pictures__change_what_is_hidden_only(norm, motion_norm, mask):
    x = clips()
    preds = 9 * torch.randn(2, 7, 96).double(), 9 * torch.randn(2, 7, 48).double()
    pictures = head(norm=norm, motion_norm=motion_norm).pictures(preds, x, mask)
    hidden = expand(mask, x.shape[2:]).expand_as(x)
    for name, original in (('masked', x), ('predicted', x), ('predicted_motion', None)):
        original = pictures['motion'] if original is None else original
        assert torch.equal(pictures[name][~hidden], original[~hidden]), name
        assert (pictures[name] - original)[hidden].abs().mean() > 0.1, name
    assert (pictures['masked'][hidden] == 0.5).all()


def test_pictures__take_predictions_of_half_precision(mask):
    x = clips().float()
    (target,) = perfect(x, mask, 'channel', True, 2)[:1]
    pictures = head(('pixel',)).pictures([target.bfloat16()], x, mask)
    assert list(pictures) == ['original', 'masked', 'predicted']
    torch.testing.assert_close(pictures['predicted'], x, rtol=0, atol=0.01)


# --------------------------------------------------------------------- errors


def test_pred_dims__count_frames_pixels_and_channels():
    assert VideoPixelHead(targets=BOTH).pred_dims == (1536, 768)
    assert head(tubelet_size=3, in_channels=2).pred_dims == (96, 64)


@pytest.mark.parametrize(
    'wrong, message',
    [
        (random_mask(2, (2, 2, 3), 5), r'shape \(2, 2, 3, 2\) .*got \(2, 2, 2, 3\)'),
        (random_mask(1, SIZE, 5), r'shape \(2, 2, 3, 2\) .*got \(1, 2, 3, 2\)'),
        (torch.cat([random_mask(1, SIZE, 5), random_mask(1, SIZE, 4)]), r'got \[5, 4\]'),
    ],
)
def test_mask__of_another_grid_is_refused(wrong, message):
    preds = torch.zeros(2, 7, 96).double(), torch.zeros(2, 7, 48).double()
    for compare in (head().loss, head().pictures):
        with pytest.raises(ValueError, match=message):
            compare(preds, clips(), wrong)


def test_bad_arguments__are_named():
    for targets in ((), ('pixel', 'pixel'), ('pixel', 'flow')):
        with pytest.raises(ValueError, match=r'once each, got \('):
            head(targets)
    with pytest.raises(ValueError, match="must be one of .* got 'patch'"):
        head(norm='patch')
    with pytest.raises(ValueError, match='at least 2 frames, got 1'):
        head(tubelet_size=1)
    with pytest.raises(ValueError, match=r'2 targets need as many loss_weights: \[1.0\]'):
        head(loss_weights=[1.0])
