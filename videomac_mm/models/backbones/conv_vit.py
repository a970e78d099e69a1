"""The convolutional vision transformer of ConvMAE, for video."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from videomac_mm.models.backbones.video_vit import (
    VideoVisionTransformer,
    conv_of_cubes,
    run_blocks,
)
from videomac_mm.registry import MODELS
from videomac_mm.sparse import LayerNorm2d, PatchConv2d, VisiblePatches

_PATCH_SIZE = 16  # of a token, in pixels: the stages have strides of 4, 2 and 2


class ConvBlock(nn.Module):
    """ConvMAE's block of convs: a depth-wise one mixes places, all others act on each alone.

    The depth-wise conv sees zeros where a mask hides. Therefore, and because nothing else looks
    across the border of a patch, visible patches can be computed without the hidden ones.

    Args:
        channels: C.
        kernel: of the depth-wise conv, (time slots, rows, columns).
        mlp_ratio: width of the MLP in C.
        drop_path_rate: share of clips that skip the block in training, in [0, 1).

    Source: ConvMAE (arXiv 2205.03892) and its code, where these norms, unlike those of the
    transformer, have torch's default eps.
    """

    def __init__(
        self,
        channels: int,
        kernel: tuple[int, int, int],
        mlp_ratio: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels)
        self.conv1 = PatchConv2d(channels, channels, 1)
        padding = [side // 2 for side in kernel]
        self.mixes_slots = kernel[0] > 1
        if not self.mixes_slots:
            self.depthwise_conv = PatchConv2d(
                channels, channels, kernel[1:], padding=padding[1:], groups=channels
            )
        else:
            self.depthwise_conv = nn.Conv3d(
                channels, channels, kernel, padding=padding, groups=channels
            )
        self.conv2 = PatchConv2d(channels, channels, 1)
        self.norm2 = LayerNorm2d(channels)
        self.fc1 = PatchConv2d(channels, int(channels * mlp_ratio), 1)
        self.fc2 = PatchConv2d(int(channels * mlp_ratio), channels, 1)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, num_clips: int, patches: VisiblePatches | None = None) -> Tensor:
        """Every time slot is an image.

        Args:
            x: maps (B*t, C, H, W), or with ``patches`` their tiles (B*t*K, C, p, p).
            num_clips: B.
            patches: of B*t images.

        Returns:
            As ``x``.
        """
        mixed = self._mix(self.conv1(self.norm1(x), patches), num_clips, patches)
        x = x + self._drop(self.conv2(mixed, patches), num_clips)
        wide = F.gelu(self.fc1(self.norm2(x), patches))
        return x + self._drop(self.fc2(wide, patches), num_clips)

    def _mix(self, x: Tensor, num_clips: int, patches: VisiblePatches | None) -> Tensor:
        if not self.mixes_slots:
            return self.depthwise_conv(x, patches)
        if patches is not None:
            x = patches.unpack(x)
        clips = x.unflatten(0, (num_clips, -1)).transpose(1, 2)  # (B, C, t, H, W)
        x = self.depthwise_conv(clips).transpose(1, 2).flatten(0, 1)
        return x if patches is None else patches.pack(x)

    def _drop(self, x: Tensor, num_clips: int) -> Tensor:
        return self.drop_path(x.unflatten(0, (num_clips, -1))).flatten(0, 1)


class ConvPatchEmbed(BaseModule):
    """From pixels to tokens by two stages of conv blocks, at strides of 4 and 8 pixels.

    Args:
        in_channels: of the clips.
        embed_dims: channels of the two stages and of the tokens.
        tubelet_size: frames of a time slot.
        kernel, mlp_ratio: as `ConvBlock`.
        drop_path_rates: of each block of the two stages.
        fuse: also bring the outputs of the stages to tokens.
        with_cp: activation checkpointing.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: Sequence[int],
        tubelet_size: int,
        kernel: tuple[int, int, int],
        mlp_ratio: float,
        drop_path_rates: Sequence[Sequence[float]],
        fuse: bool,
        with_cp: bool,
    ) -> None:
        super().__init__()
        size = tubelet_size, 4, 4
        self.projections = ModuleList([nn.Conv3d(in_channels, embed_dims[0], size, size)])
        for channels, out_channels in zip(embed_dims, embed_dims[1:]):
            self.projections.append(PatchConv2d(channels, out_channels, 2, 2))
        self.norms = ModuleList(LayerNorm2d(channels) for channels in embed_dims)
        self.stages = ModuleList(
            ModuleList(ConvBlock(channels, kernel, mlp_ratio, rate) for rate in rates)
            for channels, rates in zip(embed_dims, drop_path_rates)
        )
        self.linear = nn.Linear(embed_dims[2], embed_dims[2])
        # A token is 4 sites wide in the first stage, 2 in the second.
        self.fusion = ModuleList(
            PatchConv2d(channels, embed_dims[2], side, side)
            for channels, side in zip(embed_dims, (4, 2))
            if fuse
        )
        self.with_cp = with_cp

    def forward(
        self, x: Tensor, num_clips: int, patches: VisiblePatches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embed clips, or what is visible of them.

        Args:
            x: clips (B, C, T, H, W), or with ``patches`` their visible tubelets, in the order
                of tokens, (B*n, C, tubelet_size, 16, 16).
            num_clips: B.
            patches: of B*t images.

        Returns:
            Tokens (B, N, C), and what the stages add to the tokens that leave the backbone:
            tokens of the same shape, or None without ``fuse``.
        """
        x = conv_of_cubes(self.projections[0], x)  # (B, t, H/4, W/4, C) or (B*n, 1, 4, 4, C)
        x = F.gelu(self.norms[0](x.flatten(0, 1).permute(0, 3, 1, 2)))
        fused = None
        for stage, blocks in enumerate(self.stages):
            x = run_blocks(blocks, x, self.with_cp, num_clips, patches)
            if self.fusion:
                tokens = self._tokens(self.fusion[stage](x, patches), num_clips)
                fused = tokens if fused is None else fused + tokens
            x = F.gelu(self.norms[stage + 1](self.projections[stage + 1](x, patches)))
        return self.linear(self._tokens(x, num_clips)), fused

    @staticmethod
    def _tokens(maps: Tensor, num_clips: int) -> Tensor:
        """(B*t, C, h, w) or (B*n, C, 1, 1) -> (B, N, C)."""
        return maps.permute(0, 2, 3, 1).reshape(num_clips, -1, maps.shape[1])


@MODELS.register_module()
class ConvVisionTransformer(VideoVisionTransformer):
    """The encoder of `ConvMAE <https://arxiv.org/abs/2205.03892>`_ for video, as CMAE-V
    (arXiv 2301.06018) uses it: two stages of convs, then a vision transformer.

    Tokens are of 16x16 pixels and one time slot. Under a mask all three stages compute what is
    visible alone: the depth-wise convs of the first two take hidden places as zeros, everything
    else acts on each patch by itself, so hidden pixels are never read. Of one time slot as
    many patches must be visible as of any other. The video form of ConvMAE's encoder was
    never published; of one frame, with ``tubelet_size=1``, this is the image encoder.

    Pre-training wants ``use_mean_pooling=False`` and ``multi_scale_fusion=True``; such a
    checkpoint loads into the fine-tuned form, which has neither. For layer-wise learning rate
    decay by mmaction2 the number of layers is ``depths[2]``; all that comes before the
    transformer is layer 0, as in ConvMAE.

    Args:
        img_size: side of the images that positions are made for, in pixels. Defaults to 224.
        in_channels: Defaults to 3.
        embed_dims: channels of the three stages. Defaults to (256, 384, 768).
        depths: blocks of the three stages. Defaults to (2, 2, 11).
        num_heads: of the last stage. Defaults to 12.
        mlp_ratio: of all stages. Defaults to 4.
        drop_path_rate: of the last block; it rises linearly over the blocks of all stages.
            Defaults to 0.
        conv_kernel: of the depth-wise convs: time slots, rows, columns. With more than one
            time slot these convs, and they alone, are computed on whole maps. Defaults to
            (1, 5, 5).
        multi_scale_fusion: add the outputs of the first two stages to the tokens before
            the final norm. Defaults to False.
        num_frames, tubelet_size, with_cp: as `VideoVisionTransformer`.
        **kwargs: as `VideoVisionTransformer`.

    Raises:
        ValueError: if there are not three stages, a kernel is not odd or not square in space,
            or a size is no multiple of the token's.
    """

    def __init__(
        self,
        img_size: int = 224,
        in_channels: int = 3,
        embed_dims: Sequence[int] = (256, 384, 768),
        depths: Sequence[int] = (2, 2, 11),
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        conv_kernel: Sequence[int] = (1, 5, 5),
        multi_scale_fusion: bool = False,
        num_frames: int = 16,
        tubelet_size: int = 2,
        with_cp: bool = False,
        **kwargs,
    ) -> None:
        if len(embed_dims) != 3 or len(depths) != 3:
            raise ValueError(
                f'embed_dims and depths must name 3 stages, got {embed_dims} and {depths}'
            )
        kernel = tuple(conv_kernel)
        if len(kernel) != 3 or kernel[1] != kernel[2] or any(side % 2 == 0 for side in kernel):
            raise ValueError(
                'conv_kernel must be three odd numbers (time slots, rows, columns), rows equal to '
                f'columns, got {conv_kernel}'
            )
        super().__init__(
            img_size=img_size,
            patch_size=_PATCH_SIZE,
            in_channels=in_channels,
            embed_dims=embed_dims[2],
            depth=depths[2],
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_frames=num_frames,
            tubelet_size=tubelet_size,
            with_cp=with_cp,
            **kwargs,
        )
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        self.patch_embed = ConvPatchEmbed(
            in_channels,
            embed_dims,
            tubelet_size,
            kernel,
            mlp_ratio,
            drop_path_rates=[[next(rates) for _ in range(depth)] for depth in depths[:2]],
            fuse=multi_scale_fusion,
            with_cp=with_cp,
        )
        for block, rate in zip(self.blocks, rates):
            block.drop_path = DropPath(rate)

    def embed(
        self, x: Tensor, num_clips: int, patches: VisiblePatches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `VideoVisionTransformer.embed`; a time slot must show as many patches as any."""
        return self.patch_embed(x, num_clips, None if patches is None else patches.frames())
