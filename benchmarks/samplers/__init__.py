"""How far is a sampler from the truth, on fields that are known exactly?

- `ode`: distance of endpoints from the converged ones, from the same noise.
- `sde`: distance of samples from data as distributions.
- `gaussian_sde`: mean and standard deviation of what an SDE sampler makes of Gaussian data,
  computed without sampling, for every coefficient and path.

`problems` are the exact fields; `peers` and `sde_peers` drive the samplers of others, by their own
code; `spacings` are the grids that tuning chooses from; `distribution` compares samples with data.
"""
