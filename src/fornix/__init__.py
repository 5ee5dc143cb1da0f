"""fornix: one replay server that actors act from and learners train from.

The promise: every state that a learner trains on is, byte for byte, the state that an actor
acted on.
"""

__version__ = "0.1.0"
