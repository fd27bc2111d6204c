"""How fast is training, and how good is what it trains, beside other libraries?

- `speed`: whole training scripts in turns, `speed_relay` being the race, `speed_loops` and
  `speed_peers` the runners.
- `quality`: one network, the same batches, the losses of `quality_methods`; Fréchet distances.
- `references`: how much of a target's variance is left when it is averaged over further images.
"""
