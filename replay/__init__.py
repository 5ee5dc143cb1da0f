"""The replay memory, the service that decides about it, its server and its client."""
