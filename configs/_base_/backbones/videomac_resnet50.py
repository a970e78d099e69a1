# VideoMAC's encoder, read after its third stage.
backbone = dict(
    type='videomac_mm.SparseResNet',
    depth=50,
    variant='videomac',
    out_indices=(2,),
)
