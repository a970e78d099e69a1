_base_ = [
    '../_base_/datasets/jhmdb.py',
    '../_base_/models/label_propagation_crw_jhmdb.py',
    '../_base_/label_propagation_runtime.py',
]
model = dict(
    backbone=dict(
        type='videomac_mm.SparseConvNeXt',
        arch='small',
        use_grn=True,
        layer_scale_init_value=0.0,
        stage_norm='inline',
        out_indices=(2,),
    ),
)
