"""The actor: environments, policies, and the loop that joins them to the memory."""
