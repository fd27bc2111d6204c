"""What does a sampling step cost beside the network?

`cost` measures time, memory traffic, kernels and the graphs of a compiled run.
"""
