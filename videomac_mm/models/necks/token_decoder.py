"""The light decoder that predicts hidden tokens from visible ones."""

from collections.abc import Sequence

import torch
from mmaction.models.backbones.vit_mae import get_sinusoid_encoding
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from videomac_mm.models.backbones.video_vit import FusedBlock, run_blocks
from videomac_mm.models.masking import pick_shared
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches

_INIT_CFG = [
    dict(type='Xavier', layer='Linear', distribution='uniform', bias=0.0),
    dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
]


class _Decoder(BaseModule):
    """One trunk and the predictions that it makes."""

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        depth: int,
        num_heads: int,
        pred_dims: Sequence[int],
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, embed_dims, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.blocks = ModuleList(FusedBlock(embed_dims, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dims, eps=1e-6)
        self.preds = nn.ModuleList(nn.Linear(embed_dims, dims) for dims in pred_dims)
        self.with_cp = with_cp

    def forward(self, x: Tensor, visible: Tensor, hidden: Tensor) -> list[Tensor]:
        """``visible`` (B, Nv, D) and ``hidden`` (B, Nh, D): positions of the tokens."""
        x = torch.cat([self.proj(x) + visible, self.mask_token + hidden], 1)
        x = run_blocks(self.blocks, x, self.with_cp)
        x = self.norm(x[:, visible.shape[1] :])
        return [pred(x) for pred in self.preds]


@MODELS.register_module()
class TokenDecoder(BaseModule):
    """VideoMAE's decoder (arXiv 2203.12602, §3.3) with one prediction or several.

    Transformer blocks run on the visible tokens, narrowed, and a mask token in each hidden
    place; positions are the encoder's sinusoids in the decoder's width.

    Args:
        num_patches: N, tokens of a clip, visible and hidden.
        in_channels: channels of the encoder's tokens. Defaults to 768.
        embed_dims, depth, num_heads: of the decoder. Default to 384, 4, 6.
        pred_dims: values of each prediction per token. Defaults to one of 1536, the pixels of
            2x16x16 RGB; MotionMAE adds 768 for their differences.
        shared: several predictions share the blocks (MotionMAE's "Sha"), or each has a decoder
            of its own ("Ind"). Defaults to True.
        with_cp: compute activations once more in the backward pass. Defaults to False.
        init_cfg: initialisation. Defaults to the official code's: Xavier-uniform linear layers.
            The narrowing layer always starts as torch's default, the mask token as noise of
            std 0.02.

    Raises:
        ValueError: if nothing is to be predicted, or heads do not divide the channels.
    """

    def __init__(
        self,
        num_patches: int,
        in_channels: int = 768,
        embed_dims: int = 384,
        depth: int = 4,
        num_heads: int = 6,
        pred_dims: Sequence[int] = (1536,),
        shared: bool = True,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = _INIT_CFG,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not pred_dims or min(pred_dims) < 1:
            raise ValueError(f'pred_dims must be at least one positive number, got {pred_dims}')
        self.pred_dims = tuple(pred_dims)
        self.register_buffer(
            'pos_embed', get_sinusoid_encoding(num_patches, embed_dims), persistent=False
        )
        self.decoders = nn.ModuleList(
            _Decoder(in_channels, embed_dims, depth, num_heads, dims, with_cp)
            for dims in ([self.pred_dims] if shared else [(dims,) for dims in self.pred_dims])
        )

    def init_weights(self) -> None:
        """Initialise by ``init_cfg``, then what it must not touch."""
        super().init_weights()
        for decoder in self.decoders:
            decoder.proj.reset_parameters()
            nn.init.trunc_normal_(decoder.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, x: Tensor, mask: Tensor | VisiblePatches) -> tuple[Tensor, ...]:
        """Predict the hidden tokens.

        Args:
            x (B, n_visible, C): the encoder's tokens.
            mask (B, t, h, w): bool, True = hidden, t*h*w = num_patches; or its geometry.

        Returns:
            For each of ``pred_dims``, (B, n_hidden, P): hidden tokens in their order.

        Raises:
            TypeError, ValueError: if tokens, mask and positions do not fit each other.
        """
        patches = VisiblePatches.of(mask)
        if patches.num_patches != self.pos_embed.shape[1]:
            raise ValueError(
                f'the decoder has num_patches={self.pos_embed.shape[1]} positions, a mask of '
                f'{tuple(patches.mask.shape)} has {patches.num_patches}'
            )
        if tuple(x.shape[:2]) != (patches.batch_size, patches.num_visible):
            raise ValueError(
                f'the mask shows {patches.num_visible} tokens of each of {patches.batch_size} '
                f'samples, got tokens of shape {tuple(x.shape)}'
            )
        visible, hidden = (
            pick_shared(self.pos_embed, places, len(x))
            for places in (patches.visible, patches.hidden)
        )
        return tuple(pred for decoder in self.decoders for pred in decoder(x, visible, hidden))
