r"""`FlowMatchingPipeline` taken apart into blocks of diffusers' modular pipelines.

A block reads from a state what it needs, calls what the pipeline calls, and writes down what comes
out, so that others can stand before, behind or in the place of it.
"""
