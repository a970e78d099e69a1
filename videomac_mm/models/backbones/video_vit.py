"""Vision transformers for video that compute nothing but visible tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmaction.models.backbones.vit_mae import Attention, Block, VisionTransformer
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmcv.cnn.bricks.wrappers import Conv3d
from mmengine.model import ModuleList
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videomac_mm.models.masking import pick_shared
from videomac_mm.models.pixels import to_cubes
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches, is_plain


class FusedAttention(Attention):
    """mmaction2's attention by torch's fused kernels: same arguments, weights and results.

    Hooks and replaced layers take effect as in mmaction2's: ``qkv`` and ``attn_drop`` are
    called where calling them is more than a matrix product and a dropout.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        qkv = self._project(x).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, C / heads) each
        if is_plain(self.attn_drop, nn.Dropout):
            dropout = self.attn_drop.p if self.attn_drop.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        else:
            attention = (self.scale * q @ k.transpose(-2, -1)).softmax(-1)
            x = self.attn_drop(attention) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def _project(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, 3 * C): queries, keys and values."""
        if not hasattr(self, 'q_bias'):
            return self.qkv(x)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        if is_plain(self.qkv, nn.Linear) and self.qkv.bias is None:
            return F.linear(x, self.qkv.weight, bias)
        return self.qkv(x) + bias


class FusedBlock(Block):
    """mmaction2's block with `FusedAttention`: same arguments (the later ones by keyword)
    and weights."""

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        **kwargs,
    ) -> None:
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims must be a multiple of num_heads, got {embed_dims} and {num_heads}'
            )
        attention = (qkv_bias, qk_scale, drop_rate, attn_drop_rate)
        super().__init__(embed_dims, num_heads, mlp_ratio, *attention, **kwargs)
        self.attn = FusedAttention(
            embed_dims, num_heads, qkv_bias, qk_scale, attn_drop_rate, drop_rate
        )


def run_blocks(blocks: ModuleList, x: Tensor, with_cp: bool, *args) -> Tensor:
    """Put ``x`` through blocks, each called with ``args`` behind it; ``with_cp``: keep their
    inputs only, and compute what the backward pass needs once more there."""
    for block in blocks:
        if with_cp and torch.is_grad_enabled():
            x = checkpoint(block, x, *args, use_reentrant=False)
        else:
            x = block(x, *args)
    return x


def conv_of_cubes(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a 3-D conv whose stride is its kernel: (B, C, T, H, W) -> (B, t, h, w, D).

    A plain conv is computed as a matrix product. That is faster for few cubes, on CPUs for any
    number of them, and gives channels-last maps.
    """
    if is_plain(conv, nn.Conv3d) or is_plain(conv, Conv3d):
        settings = conv.stride, conv.padding, conv.dilation, conv.groups
        if settings == (conv.kernel_size, (0, 0, 0), (1, 1, 1), 1):
            rows = to_cubes(x, conv.kernel_size).flatten(4)
            return F.linear(rows, conv.weight.flatten(1), conv.bias)
    return conv(x).permute(0, 2, 3, 4, 1)


def _along_axes(places: Tensor, grid: Sequence[int]) -> tuple[Tensor, ...]:
    """Places in the tokens of a batch as indices of clip, time slot, row and column."""
    axes = []
    for side in reversed(grid):
        axes.insert(0, places % side)
        places = places // side
    return places, *axes


@MODELS.register_module()
class VideoVisionTransformer(VisionTransformer):
    """mmaction2's `VisionTransformer` that takes a mask, and still images.

    The encoder of VideoMAE (arXiv 2203.12602), MotionMAE and CMAE-V. Without a mask it is
    mmaction2's, with the same arguments and weights: a checkpoint of pre-training loads there
    as it is. Pre-training wants ``use_mean_pooling=False``, for else there is no final norm;
    maps instead of vectors want ``return_feat_map=True``.

    Args:
        img_size: side of the images that positions are made for, in pixels. Defaults to 224.
        patch_size: side of a token in pixels. Defaults to 16.
        num_frames: length of the clips that positions are made for. Defaults to 16.
        tubelet_size: frames of a token. Defaults to 2.
        embed_dims, depth, num_heads: of the blocks. Default to 768, 12, 12 (ViT-B).
        drop_rate, attn_drop_rate, drop_path_rate: all default to 0.
        with_cp: compute activations once more in the backward pass, to save memory.
            Defaults to False.
        **kwargs: as mmaction2's.

    Raises:
        ValueError: if a size is no multiple of the token's.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dims: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        init_values: float = 0.0,
        num_frames: int = 16,
        tubelet_size: int = 2,
        with_cp: bool = False,
        **kwargs,
    ) -> None:
        if img_size % patch_size or num_frames % tubelet_size:
            raise ValueError(
                'img_size and num_frames must be multiples of patch_size and tubelet_size, got '
                f'{img_size} of {patch_size} and {num_frames} of {tubelet_size}'
            )
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dims=embed_dims,
            depth=0,  # its blocks are made below
            drop_rate=drop_rate,
            norm_cfg=norm_cfg,
            num_frames=num_frames,
            tubelet_size=tubelet_size,
            **kwargs,
        )
        self.blocks = ModuleList(
            FusedBlock(
                embed_dims,
                num_heads,
                mlp_ratio,
                qkv_bias,
                qk_scale,
                drop_rate,
                attn_drop_rate,
                drop_path_rate=rate,
                init_values=init_values,
                norm_cfg=norm_cfg,
            )
            for rate in torch.linspace(0, drop_path_rate, depth, device='cpu').tolist()
        )
        self.tubelet_size = tubelet_size
        self.with_cp = with_cp

    def forward(self, x: Tensor, mask: Tensor | VisiblePatches | None = None) -> Tensor:
        """Compute the tokens of clips, those that are visible or all.

        Args:
            x (B, C, T, H, W): clips; or (B, C, H, W): images, which stand still for one
                tubelet at the place of the first. Sizes other than those of the positions
                get interpolated ones; shorter clips the first ones.
            mask (B, t, h, w): bool, True = hidden, as many of every clip; or its geometry.

        Returns:
            Under a mask, tokens (B, n_visible, C) in their order, after the final norm.
            Without one, as mmaction2's: with ``return_feat_map`` the map (B, C, t, h, w), of
            images (B, C, h, w); else the mean, or the first token, (B, C).

        Raises:
            ValueError: if a clip is longer than the positions, the mask has another grid, or
                its samples hide different numbers of tokens.
        """
        is_image = x.ndim == 4
        if is_image:
            x = x.unsqueeze(2).expand(-1, -1, self.tubelet_size, -1, -1)
        size = self.tubelet_size, self.patch_size, self.patch_size
        grid = [whole // part for whole, part in zip(x.shape[2:], size)]
        t, h, w = (number * part for number, part in zip(grid, size))
        x, num_clips = x[:, :, :t, :h, :w], len(x)
        pos_embed = self.positions(grid)
        patches = None
        if mask is not None:
            patches = VisiblePatches.of(mask)
            if list(patches.mask.shape) != [num_clips, *grid]:
                raise ValueError(
                    f'mask must have shape {(num_clips, *grid)} (B, t, h, w), got '
                    f'{tuple(patches.mask.shape)}'
                )
        if patches is None or patches.num_visible == patches.num_patches:
            x, late = self.embed(x, num_clips)
        else:
            pos_embed = pick_shared(pos_embed, patches.visible, num_clips)
            cubes = to_cubes(x, size)  # (B, t, h, w, C, *size)
            x, late = self.embed(cubes[_along_axes(patches.visible, grid)], num_clips, patches)
        x = run_blocks(self.blocks, self.pos_drop(x + pos_embed), self.with_cp)
        x = self.norm(x if late is None else x + late)
        if patches is not None:
            return x
        if self.return_feat_map:
            x = x.transpose(1, 2).unflatten(2, grid)
            return x.squeeze(2) if is_image else x
        return x[:, 0] if self.fc_norm is None else self.fc_norm(x.mean(1))

    def embed(
        self, x: Tensor, num_clips: int, patches: VisiblePatches | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Make tokens of pixels.

        Args:
            x: clips (B, C, T, H, W), or with ``patches`` what is visible of them, in the order
                of tokens: (B*n, C, tubelet_size, patch_size, patch_size).
            num_clips: B.
            patches: the geometry of the mask (B, t, h, w).

        Returns:
            Tokens (B, N, C), and None; or tokens to be added before the final norm.
        """
        embed = self.patch_embed
        if is_plain(embed, PatchEmbed) and embed.norm is None and embed.adaptive_padding is None:
            tokens = conv_of_cubes(embed.projection, x)
        else:
            tokens, _ = embed(x)
        return tokens.reshape(num_clips, -1, self.embed_dims), None

    def positions(self, grid: list[int]) -> Tensor:
        """The position embedding (1, t*h*w, C) for a grid (t, h, w)."""
        t, *places = grid
        slots = self.pos_embed.shape[1] // (self.grid_size[0] * self.grid_size[1])
        if t > slots:
            raise ValueError(
                f'a clip of {t * self.tubelet_size} frames is longer than num_frames='
                f'{slots * self.tubelet_size}, which the backbone has positions for'
            )
        table = self.pos_embed.unflatten(1, (slots, *self.grid_size))[:, :t]
        if tuple(places) != tuple(self.grid_size):
            maps = table[0].permute(0, 3, 1, 2)  # (t, C, h, w)
            maps = F.interpolate(maps, places, mode='bicubic', align_corners=False)
            table = maps.permute(0, 2, 3, 1)[None]
        return table.flatten(1, 3)
