# UPerNet on ConvNeXt-V2-T, as mmsegmentation trains UPerNet on ConvNeXt-T (arXiv 2201.03545): data,
# heads, AdamW at 1e-4 for 16 images, warm-up of 1500 iterations and the like are inherited.
_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
custom_imports = dict(imports=['videomac_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        # The encoder of VideoMAC.
        type='videomac_mm.SparseConvNeXt',
        arch='tiny',
        use_grn=True,
        layer_scale_init_value=0.0,
        stage_norm='inline',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.4,
    ),
)
optim_wrapper = dict(
    # mmsegmentation's constructor does not know inline norms and would give them the head's rate.
    # Its rate of decay, but by groups of blocks, where it decays by stage.
    constructor='videomac_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.9,
        layer_decay_type='group',
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
    ),
)
auto_scale_lr = dict(base_batch_size=16)
