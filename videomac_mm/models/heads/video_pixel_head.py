"""Pixels of video and their motion as targets of masked pre-training."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor

from videomac_mm.models.masking import pick
from videomac_mm.models.pixels import to_cubes
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches

_TARGETS = ('pixel', 'motion')
_NORMS = ('channel', 'joint', None)


@MODELS.register_module()
class VideoPixelHead(BaseModule):
    """Hidden tubelets of pixels, and how they change from frame to frame.

    **pixel**, VideoMAE's target (arXiv 2203.12602, §4.1 and its code): the values of a tubelet
    in the order frame, row, column, channel, normalised over the tubelet.

    **motion**, MotionMAE's (arXiv 2210.04154, §3; no code was published, details are ours): the
    differences of adjacent frames within a tubelet, in the same order and normalised alike.
    Where nothing moves they are exactly 0.

    Args:
        patch_size: side of a tubelet in pixels. Defaults to 16.
        tubelet_size: its frames. Defaults to 2.
        in_channels: its channels. Defaults to 3.
        targets: 'pixel', or 'pixel' and 'motion', in the order of the predictions.
            Defaults to ('pixel',).
        norm: how a tubelet is normalised: 'channel', each channel by its mean and unbiased
            deviation, ``(x - mean) / (sqrt(var) + 1e-6)``, as VideoMAE does; 'joint', all
            channels together, ``(x - mean) / sqrt(var + 1e-6)``, as MAE does; None, not at all.
            Defaults to 'channel'.
        motion_abs: take absolute differences. Defaults to True.
        motion_norm: normalise motion as pixels are. Defaults to True.
        loss_weights: of the targets. Defaults to None (1 each).
        loss: config of the loss of (B, n_hidden, P) predictions and targets; defaults to
            ``mmpretrain.PixelReconstructionLoss`` with 'L2', their mean squared distance.

    Raises:
        ValueError: if an argument is not among its values, or motion is wanted of one frame.
    """

    def __init__(
        self,
        patch_size: int = 16,
        tubelet_size: int = 2,
        in_channels: int = 3,
        targets: Sequence[str] = ('pixel',),
        norm: str | None = 'channel',
        motion_abs: bool = True,
        motion_norm: bool = True,
        loss_weights: Sequence[float] | None = None,
        loss: dict = dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2'),
    ) -> None:
        super().__init__()
        if not targets or len(set(targets)) < len(targets) or set(targets) - set(_TARGETS):
            raise ValueError(f'targets must be some of {_TARGETS}, once each, got {targets}')
        if norm not in _NORMS:
            raise ValueError(f'norm must be one of {_NORMS}, got {norm!r}')
        if 'motion' in targets and tubelet_size < 2:
            raise ValueError(f'motion needs tubelets of at least 2 frames, got {tubelet_size}')
        loss_weights = [1.0] * len(targets) if loss_weights is None else list(loss_weights)
        if len(loss_weights) != len(targets):
            raise ValueError(f'{len(targets)} targets need as many loss_weights: {loss_weights}')
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.in_channels = in_channels
        self.targets = tuple(targets)
        self.norm = norm
        self.motion_abs = motion_abs
        self.motion_norm = motion_norm
        self.loss_weights = loss_weights
        self.loss_module = MODELS.build(loss)

    @property
    def pred_dims(self) -> tuple[int, ...]:
        """P, values per token, of each target."""
        area = self.patch_size**2 * self.in_channels
        frames = dict(pixel=self.tubelet_size, motion=self.tubelet_size - 1)
        return tuple(frames[target] * area for target in self.targets)

    def loss(
        self, preds: Sequence[Tensor], clips: Tensor, mask: Tensor | VisiblePatches
    ) -> dict[str, Tensor]:
        """Compare predictions with what is hidden.

        Args:
            preds: for each target, (B, n_hidden, P), hidden tokens in their order.
            clips (B, C, T, H, W): in [0, 1].
            mask (B, t, h, w): bool, True = hidden; or its geometry.

        Returns:
            ``loss_pixel`` and ``loss_motion``, weighted scalars in float32 at least; with
            normalisation, 1.0 is about what predicting the mean of every tubelet costs.

        Raises:
            TypeError, ValueError: if the mask is not one of tubelets of the clips.
        """
        patches = self._patches(clips, mask)
        losses = {}
        for name, pred, weight in zip(self.targets, preds, self.loss_weights):
            cubes = self._pick(self._cubes(clips, name), patches.hidden)
            mean, scale = self._statistics(cubes, name)
            target = ((cubes - mean) / scale).flatten(2)
            pred = pred if pred.dtype == target.dtype else pred.float()
            losses[f'loss_{name}'] = weight * self.loss_module(pred, target)
        return losses

    def pictures(
        self, preds: Sequence[Tensor], clips: Tensor, mask: Tensor | VisiblePatches
    ) -> dict[str, Tensor]:
        """Paste predictions into the hidden tubelets.

        Args:
            preds, clips, mask: as in `loss`.

        Returns:
            ``original``, ``masked`` (hidden pixels are grey) and ``predicted`` for pixels;
            ``motion`` and ``predicted_motion``, what changes to the next frame of the tubelet,
            as bright as the strongest motion of the clip allows. All (B, C, T, H, W); what is
            not a prediction is in [0, 1].
            What was normalised takes mean and deviation from the clip, since the network does
            not predict them.
        """
        patches = self._patches(clips, mask)
        hidden, grid = patches.hidden, patches.grid
        pictures = {}
        for name, pred in zip(self.targets, preds):
            cubes = self._cubes(clips, name)
            mean, scale = self._statistics(self._pick(cubes, hidden), name)
            pred = pred.to(cubes.dtype).unflatten(2, cubes.shape[2:]) * scale + mean
            pasted = cubes.flatten(0, 1).index_copy(0, hidden, pred.flatten(0, 1)).view_as(cubes)
            if name == 'pixel':
                masked = cubes.masked_fill(patches.mask.flatten(1)[..., None, None], 0.5)
                pictures['original'] = clips
                pictures['masked'] = self._join(masked, grid)
                pictures['predicted'] = self._join(pasted, grid)
            else:
                # Stretched, for most motion is faint; signed differences around grey.
                most = cubes.abs().flatten(1).amax(1).clamp(min=1e-6).view(-1, 1, 1, 1, 1)
                for key, value in (('motion', cubes), ('predicted_motion', pasted)):
                    picture = self._join(value, grid) / most
                    pictures[key] = picture if self.motion_abs else (picture + 1) / 2
        return pictures

    def _patches(self, clips: Tensor, mask: Tensor | VisiblePatches) -> VisiblePatches:
        """The geometry of the mask, checked to be that of tubelets of the clips."""
        patches = VisiblePatches.of(mask)
        size = self.tubelet_size, self.patch_size, self.patch_size
        wanted = len(clips), *(whole // part for whole, part in zip(clips.shape[2:], size))
        if tuple(patches.mask.shape) != wanted:
            raise ValueError(
                f'mask must have shape {wanted} for clips of shape {tuple(clips.shape)}, got '
                f'{tuple(patches.mask.shape)}'
            )
        return patches

    def _cubes(self, clips: Tensor, name: str) -> Tensor:
        """(B, C, T, H, W) -> (B, N, frames * p * p, C), the tubelets of a target."""
        size = self.tubelet_size, self.patch_size, self.patch_size
        x = to_cubes(clips, size).movedim(4, -1)  # (B, t, h, w, f, p, p, C)
        if name == 'motion':
            x = x.diff(dim=4)
            x = x.abs() if self.motion_abs else x
        return x.flatten(4, 6).flatten(1, 3)

    def _join(self, cubes: Tensor, grid: Sequence[int]) -> Tensor:
        """The way back, for a grid (t, h, w); the last difference stays for a frame more."""
        x = cubes.unflatten(2, (-1, self.patch_size, self.patch_size))
        if x.shape[2] < self.tubelet_size:
            x = torch.cat([x, x[:, :, -1:]], 2)
        x = x.unflatten(1, tuple(grid)).permute(0, 7, 1, 4, 2, 5, 3, 6)
        for dim in (6, 4, 2):  # (B, C, t, f, h, p, w, p)
            x = x.flatten(dim, dim + 1)
        return x

    def _statistics(self, cubes: Tensor, name: str) -> tuple[Tensor | float, Tensor | float]:
        """Mean and scale that normalise tubelets (B, n, frames * p * p, C)."""
        if self.norm is None or (name == 'motion' and not self.motion_norm):
            return 0.0, 1.0
        dims = 2 if self.norm == 'channel' else (2, 3)
        var, mean = torch.var_mean(cubes, dims, keepdim=True)
        return mean, var.sqrt() + 1e-6 if self.norm == 'channel' else (var + 1e-6).sqrt()

    @staticmethod
    def _pick(cubes: Tensor, indices: Tensor) -> Tensor:
        """As `pick`, for tubelets (B, N, frames * p * p, C)."""
        return pick(cubes.flatten(2), indices).unflatten(2, cubes.shape[2:])
