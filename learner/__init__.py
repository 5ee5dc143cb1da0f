"""The learner: losses, gradient steps, prefetching, checkpoints."""
