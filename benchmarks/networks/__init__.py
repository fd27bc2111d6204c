"""How far are few-step samples of a trained network from its own converged ones?

`few_steps` measures it, and the distance to real images. `trained` holds the network and its
truth, `metrics` the distances, `report` the table and the picture.
"""
