# DAVIS-2016, 20 validation videos of one object each. CRW itself is run on DAVIS-2017 only;
# here its way of reading frames is kept.
_base_ = './davis2017_crw.py'

test_dataloader = dict(dataset=dict(data_root='data/davis2016', year=2016))
