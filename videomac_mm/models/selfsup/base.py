"""What masked autoencoders of video have in common."""

from abc import abstractmethod

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from videomac_mm.models.masking import MaskGenerator, StepNoise
from videomac_mm.models.pixels import to_pixels
from videomac_mm.registry import TASK_UTILS
from videomac_mm.sparse import VisiblePatches


def default_preprocessor() -> dict:
    """Clips of RGB, normalised by the statistics of ImageNet, as in all configs."""
    return dict(
        type='mmaction.ActionDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        format_shape='NCTHW',
    )


class MaskedAutoencoder(BaseSelfSupervisor):
    """Base of algorithms that hide patches of clips and predict them.

    A subclass defines two methods:

    - ``loss(inputs, data_samples=None, mask=None) -> dict``, which takes its clips from `clips`
      and the geometry of the mask from `patches`, and hands the geometry to backbone, neck and
      head;
    - `pictures`, from which `reconstruct` follows.

    Args:
        backbone: the encoder, ``forward(x, mask)``, where ``mask`` is a `VisiblePatches`.
        neck: the decoder, ``forward(features, mask)``.
        head: targets and loss.
        mask_generator: called with clips, or with frames if ``encodes_frames``. It returns the
            geometry of a mask, or the mask itself, which is then checked.
        data_preprocessor: Defaults to ``mmaction.ActionDataPreprocessor`` with
            ``format_shape='NCTHW'`` and the mean and deviation of ImageNet.
        init_cfg: initialisation. Defaults to None.
    """

    # The backbone takes images (B, C, H, W), and the frames of a clip share a mask (B, h, w).
    # Otherwise it takes clips (B, C, T, H, W), and masks are (B, t, h, w).
    encodes_frames = False

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        mask_generator: dict,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            backbone,
            neck,
            head,
            data_preprocessor=data_preprocessor or default_preprocessor(),
            init_cfg=init_cfg,
        )
        self.mask_generator = TASK_UTILS.build(mask_generator)
        self.step_noise: StepNoise | None = None

    def set_step(self, seed: int, step: int, rank: int = 0) -> None:
        """Draw the masks of a step of a run: a function of seed, step and rank.

        The processes of a run then hide what one process with the whole batch would hide. Train
        loops of this package call it before every step. Mask generators of your own draw from
        torch's global random numbers, as all do after `forget_step`.

        Args:
            seed: of the run.
            step: iteration, from 0.
            rank: of this process. Defaults to 0.
        """
        if not isinstance(self.mask_generator, MaskGenerator):
            return
        device = next(self.parameters()).device
        if self.step_noise is None or self.step_noise.key.device != device:
            self.step_noise = StepNoise(seed, step, rank, device)
        else:
            self.step_noise.move_to(seed, step)

    def forget_step(self) -> None:
        """Draw masks from torch's global random numbers again."""
        self.step_noise = None

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """As mmengine; gradients of a total that is inf or NaN are all NaN.

        So `NonFiniteHook` sees every loss that is not finite, in all processes, before the step.
        """
        total, log_vars = super().parse_losses(losses)
        return total * (total.detach() * 0 + 1), log_vars

    @torch.no_grad()
    def reconstruct(
        self, inputs: Tensor, mask: Tensor | VisiblePatches | None = None
    ) -> dict[str, Tensor]:
        """Show what the network sees and what it makes of it.

        Args:
            inputs, mask: as in ``loss``.

        Returns:
            ``original``, ``masked`` and ``predicted`` (pasted into the visible pixels), and
            what else `pictures` gives, each (B*V, C, T, H, W) in [0, 1].
        """
        clips = self.clips(inputs)
        pictures = self.pictures(clips, self.patches(clips, mask))
        return {name: picture.clamp(0, 1) for name, picture in pictures.items()}

    @abstractmethod
    def pictures(self, clips: Tensor, patches: VisiblePatches) -> dict[str, Tensor]:
        """The pictures of `reconstruct`, before values are clamped to [0, 1].

        Args:
            clips (B, C, T, H, W): normalised.
            patches: the geometry of the mask.
        """

    def extract_feat(
        self, inputs: Tensor, mask: Tensor | VisiblePatches | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Features of the (online) backbone.

        Args:
            inputs: what the backbone takes, images or clips, without the axis of videos; or
                (B, V, C, T, H, W), which becomes B*V clips, or B*V*T images.
            mask: for as many images or clips; True = hidden.

        Returns:
            As the backbone.
        """
        if inputs.ndim == 6:
            inputs = inputs.flatten(0, 1)
            if self.encodes_frames:
                inputs = inputs.transpose(1, 2).flatten(0, 1)
        return self.backbone(inputs, mask)

    def clips(self, inputs: Tensor) -> Tensor:
        """Check a batch (B, V, C, T, H, W), and return its clips (B*V, C, T, H, W).

        Raises:
            ValueError, TypeError: for another shape, or numbers that are not normalised yet.
        """
        if inputs.ndim != 6:
            raise ValueError(
                f'{type(self).__name__} needs clips (B, V, C, T, H, W), got a tensor of shape '
                f'{tuple(inputs.shape)}'
            )
        if not inputs.is_floating_point():
            raise TypeError(
                f'{type(self).__name__} needs normalised clips of floats, got {inputs.dtype}; '
                'its data_preprocessor makes them'
            )
        return inputs.flatten(0, 1)

    def patches(self, clips: Tensor, mask: Tensor | VisiblePatches | None) -> VisiblePatches:
        """The geometry of a mask for clips: of a new mask, or of a given one, which is checked.

        Raises:
            ValueError, TypeError: for a mask of the wrong shape or type.
        """
        inputs = clips[:, :, 0] if self.encodes_frames else clips
        if mask is None:
            noise = () if self.step_noise is None else (self.step_noise,)
            return VisiblePatches.of(self.mask_generator(inputs, *noise))
        return self.mask_generator.check(mask, inputs)

    def pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation of images or clips: values in [0, 1]."""
        return to_pixels(images, self.data_preprocessor)
