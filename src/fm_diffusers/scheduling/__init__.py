"""What `GaussianFlowScheduler` is made of: its clock, its plans and the place in them."""
