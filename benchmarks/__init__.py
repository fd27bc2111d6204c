"""What this package measures of itself and of its peers: a folder for each question.

| folder | question |
|---|---|
| `samplers` | how far a sampler is from the truth where the truth is known: exact fields |
| `networks` | how far it is on trained networks: from converged samples, and from images |
| `step` | what a step costs beside the network |
| `inference` | what caches, precisions and compilation save, and change |
| `training` | how fast, and how good, training is beside other libraries |

`parts` is the table of all that README and docs quote, with the command, the minutes and the page
of each; `python -m benchmarks` runs it, and so does `make bench`. Every benchmark is a module that
also runs alone from the root of the repository, `python -m benchmarks.samplers.ode` for example;
`--help` lists its arguments, its docstring says what it measures and how, and its tables and
pictures go to `--output_dir`. Those of the documentation are in `benchmarks/results`; `header`
writes what stands above each table. The peers are extras: `pip install -e '.[bench]'`.
"""
