"""What `FlowMatchingPipeline` is made of: conditions, latents, the Hub and adapters."""
