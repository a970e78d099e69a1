# VideoMAC's encoder, read after its third stage.
backbone = dict(
    type='videomac_mm.SparseConvNeXt',
    arch='atto',
    use_grn=True,
    layer_scale_init_value=0.0,
    stage_norm='inline',
    out_indices=(2,),
)
