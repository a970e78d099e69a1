_base_ = './default_runtime.py'

# Unlike in pre-training, all ranks begin with the same random weights, if with random ones.
randomness = dict(seed=0, diff_rank_seed=False)
